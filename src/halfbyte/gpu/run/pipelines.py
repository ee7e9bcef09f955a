"""From a kernel's source and its constants to a pipeline.

Kernels are WGSL with three additions, resolved here so that each is compiled for its exact shapes:

    ${expression}                  a Python expression over the constants, as text
    #if expression … #elif expression … #else … #endif
    #for i in expression … #endfor     the lines between, once for each value of `${i}`
    #include name KEY=expression …     another file, with more constants

`@bind var<storage, read[_write]> name` is numbered in order of appearance; buffers are bound by that name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import wgpu
from wgpu.backends.wgpu_native import _api, ffi, lib

from halfbyte.gpu.device.device import Device

KERNELS = Path(__file__).parent.parent / "shaders" / "kernels"
FORMATS = Path(__file__).parent.parent.parent / "formats"
COMPILERS = min(8, os.cpu_count() or 1)
"""Kernels that are compiled at once."""

Constants = Mapping[str, Any]

_DIRECTIVE = re.compile(r"\s*#(if|elif|else|endif|for|endfor|include)\b\s*(.*?)\s*$")
_BINDING = re.compile(r"@bind var<storage, (read|read_write)> (\w+)")
_EXPRESSION = re.compile(r"\$\{((?:[^{}]|\{[^{}]*\})*)\}")
_BUILTINS = {"bool": bool, "float": float, "max": max, "min": min, "next": next, "range": range}


class Pipeline:
    """A kernel that is compiled, or being compiled by another thread: what needs it waits.

    Attributes:
        bindings: Names of its buffers, in the order they are numbered.
    """

    def __init__(self, name: str, device: Device, bindings: tuple[str, ...], compiled: Future[tuple[Any, Any]]) -> None:
        self.name = name
        self.bindings = bindings
        self._device = device
        self._compiled = compiled

    @property
    def handle(self) -> Any:
        """wgpu's pipeline; raises as `wait` does."""
        return self.wait()[0]

    @property
    def layout(self) -> Any:
        """The layout of its one bind group; raises as `wait` does."""
        return self.wait()[1]

    def wait(self) -> tuple[Any, Any]:
        """Handle and layout, once they are there.

        Raises:
            DeviceError: The driver did not accept the kernel.
        """
        if self._compiled.done() and not self._compiled.exception():
            return self._compiled.result()
        with self._device.guarded(f"kernel {self.name} was not accepted"):
            return self._compiled.result()


class Pipelines:
    """The compiled kernels of a device, each compiled once, several at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._made: dict[str, Pipeline] = {}
        self._found: dict[tuple[str, frozenset[tuple[str, str]]], Pipeline] = {}
        self._compilers = ThreadPoolExecutor(COMPILERS, "compiler")

    def get(self, kernel: str, constants: Constants) -> Pipeline:
        """The kernel file `kernel` with these constants."""
        key = (kernel, frozenset((name, repr(value)) for name, value in constants.items()))
        if key not in self._found:
            source = compose(kernel, constants)
            if source not in self._made:
                bindings = _BINDING.findall(source)
                compiled = self._compilers.submit(_compile, self._device.handle, kernel, source, bindings)
                self._made[source] = Pipeline(kernel, self._device, tuple(name for _, name in bindings), compiled)
            self._found[key] = self._made[source]
        return self._found[key]


def _compile(device: Any, name: str, source: str, bindings: Sequence[tuple[str, str]]) -> tuple[Any, Any]:
    """A pipeline, and the layout of its bind group."""
    kinds = {"read": "read-only-storage", "read_write": "storage"}
    entries = [
        {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kinds[access]}}
        for i, (access, _) in enumerate(bindings)
    ]
    layout = device.create_bind_group_layout(entries=entries)
    pipeline = device.create_compute_pipeline(
        layout=device.create_pipeline_layout(bind_group_layouts=[layout]),
        compute={"module": _trusted_module(device, name, _numbered(source)), "entry_point": "main"},
    )
    return pipeline, layout


def _numbered(source: str) -> str:
    numbers = itertools.count()
    return re.sub("@bind ", lambda _: f"@group(0) @binding({next(numbers)}) ", source)


def _trusted_module(device: Any, label: str, source: str) -> Any:
    """A module without the loop counters and index clamps that wgpu adds to code from strangers."""
    code = ffi.new("char[]", source.encode())
    chained = ffi.new("WGPUShaderSourceWGSL *")
    chained.chain.sType = lib.WGPUSType_ShaderSourceWGSL
    chained.code.data, chained.code.length = code, len(code) - 1
    descriptor = ffi.new("WGPUShaderModuleDescriptor *")
    descriptor.nextInChain = ffi.cast("WGPUChainedStruct *", chained)
    module = _api.libf.wgpuDeviceCreateShaderModuleTrusted(device._internal, descriptor, 0)
    return _api.GPUShaderModule(label, module, device)


def compose(kernel: str, constants: Constants) -> str:
    """The WGSL of a kernel file with everything resolved."""
    return "\n".join(_resolve(_lines(kernel), constants)) + "\n"


@cache
def kernels_hash() -> str:
    """Changes whenever any kernel or format snippet does."""
    files = [*sorted(KERNELS.glob("*.wgsl")), *sorted(FORMATS.glob("*.wgsl"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


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
