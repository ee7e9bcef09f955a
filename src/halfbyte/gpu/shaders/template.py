"""From a kernel's source and its constants to WGSL.

Kernels are WGSL with three additions, resolved here so that each is made for its exact shapes:

    ${expression}                  a Python expression over the constants, as text
    #if expression … #elif expression … #else … #endif
    #for i in expression … #endfor     the lines between, once for each value of `${i}`
    #include name KEY=expression …     another file, with more constants

`@bind var<storage, read[_write]> name` is numbered in order of appearance; buffers are bound by that name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).parent / "kernels"
FORMATS = Path(__file__).parent.parent.parent / "formats"

Constants = Mapping[str, Any]

_DIRECTIVE = re.compile(r"\s*#(if|elif|else|endif|for|endfor|include)\b\s*(.*?)\s*$")
_BINDING = re.compile(r"@binding\(\d+\) var<storage, (read|read_write)> (\w+)")
_EXPRESSION = re.compile(r"\$\{((?:[^{}]|\{[^{}]*\})*)\}")
_BUILTINS = {"bool": bool, "float": float, "max": max, "min": min, "next": next, "range": range}


def compose(kernel: str, constants: Constants) -> str:
    """The WGSL of a kernel file with everything resolved."""
    return _numbered("\n".join(_resolve(_lines(kernel), constants)) + "\n")


def bindings(source: str) -> tuple[tuple[str, str], ...]:
    """The (access, name) of each buffer that WGSL binds, in the order of their numbers; access as WGSL writes it."""
    return tuple(_BINDING.findall(source))


def _numbered(source: str) -> str:
    numbers = itertools.count()
    return re.sub("@bind ", lambda _: f"@group(0) @binding({next(numbers)}) ", source)


@cache
def _lines(name: str) -> tuple[str, ...]:
    folder = KERNELS if (KERNELS / f"{name}.wgsl").exists() else FORMATS
    text = (folder / f"{name}.wgsl").read_text()
    return tuple(line for line in text.splitlines() if not line.lstrip().startswith("//"))


def _resolve(lines: Sequence[str], constants: Constants) -> Iterator[str]:
    i = 0
    while i < len(lines):
        directive = _DIRECTIVE.match(lines[i])
        if not directive:
            yield _substitute(lines[i], constants)
            i += 1
        elif directive[1] == "include":
            name, *pairs = directive[2].split()
            more = {key: _evaluate(value, constants) for key, value in (pair.split("=", 1) for pair in pairs)}
            yield from _resolve(_lines(_substitute(name, constants)), {**constants, **more})
            i += 1
        else:
            end = _matching_end(lines, i)
            resolve = _resolve_for if directive[1] == "for" else _resolve_if
            yield from resolve(lines[i:end], constants)
            i = end + 1


def _resolve_for(block: Sequence[str], constants: Constants) -> Iterator[str]:
    variables, _, values = block[0].partition("#for")[2].strip().partition(" in ")
    names = variables.split(", ")
    for value in _evaluate(values, constants):
        yield from _resolve(
            block[1:], {**constants, **dict(zip(names, value if len(names) > 1 else [value], strict=True))}
        )


def _resolve_if(block: Sequence[str], constants: Constants) -> Iterator[str]:
    marks = [0, *(i for i, kind in _at_top(block) if kind in ("elif", "else")), len(block)]
    for start, end in itertools.pairwise(marks):
        match = _DIRECTIVE.match(block[start])
        if match and (match[1] == "else" or _evaluate(match[2], constants)):
            yield from _resolve(block[start + 1 : end], constants)
            return


def _at_top(block: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Directives of a block that belong to its first line, not to a block inside."""
    depth = 0
    for i, line in enumerate(block):
        match = _DIRECTIVE.match(line)
        kind = match[1] if match else ""
        depth -= kind in ("endif", "endfor")
        if depth == 1 and kind in ("elif", "else"):
            yield i, kind
        depth += kind in ("if", "for")


def _matching_end(lines: Sequence[str], start: int) -> int:
    depth = 0
    for i in range(start, len(lines)):
        match = _DIRECTIVE.match(lines[i])
        kind = match[1] if match else ""
        depth += (kind in ("if", "for")) - (kind in ("endif", "endfor"))
        if depth == 0:
            return i
    raise ValueError(f"unclosed directive: {lines[start]}")


def _substitute(text: str, constants: Constants) -> str:
    return _EXPRESSION.sub(lambda match: _text(_evaluate(match[1], constants)), text)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _evaluate(expression: str, constants: Constants) -> Any:
    """Kernels are part of the package: what they ask Python for is trusted."""
    return _compiled(expression)(constants)


@cache
def _compiled(expression: str) -> Callable[[Constants], Any]:
    code = compile(expression, expression, "eval")
    return lambda constants: eval(code, {"__builtins__": _BUILTINS, **constants})
