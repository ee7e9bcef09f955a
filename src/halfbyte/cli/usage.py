"""Errors in the command line as plain sentences: what was typed, what is allowed, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from halfbyte.errors import UsageError

_MEANT = dict.fromkeys(("cuda", "rocm", "vulkan", "metal", "mps", "webgpu"), "gpu") | {"numpy": "reference"}
"""Values of other programs, and ours that they mean."""

_OPTIONS = {"kv_dtype": "kv-cache", "batch_tokens": "batch-tokens", "cache_tokens": "cache-tokens"}
_ARGUMENT = re.compile(
    r"\b(device|weights|activations|kv_dtype|gpu|threads|context|batch_tokens|cache_tokens)='?(\w+)'?"
)

_WANTED: dict[str, Callable[[Any], str]] = {
    "greater_than_equal": lambda limits: f"must be at least {limits['ge']}",
    "greater_than": lambda limits: f"must be more than {limits['gt']}",
    "less_than_equal": lambda limits: f"must be at most {limits['le']}",
    "less_than": lambda limits: f"must be less than {limits['lt']}",
    "int_parsing": lambda limits: "must be a whole number",
    "int_parsing_size": lambda limits: "must be a smaller number",
    "int_from_float": lambda limits: "must be a whole number",
    "float_parsing": lambda limits: "must be a number",
    "finite_number": lambda limits: "must be a finite number",
}
"""What the validator calls each failure, and what it means."""


def explained(error: typer.TyperException) -> tuple[str, str]:
    """The message and the hint for an error of the parser."""
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        return _unknown_option(error, option)
    failures = getattr(error.__cause__, "errors", None)
    if failures is not None:
        return _bad_value(error, failures()[0])
    return _sentence(error.format_message()), _see_help(error)


def in_terminal(text: str) -> str:
    """A text of the library with its arguments as options of the command line: `device='cpu'` → `--device cpu`."""
    return _ARGUMENT.sub(lambda found: f"--{_OPTIONS.get(found[1], found[1])} {found[2]}", text)


def refuse_extra(ctx: Any, rest: list[str]) -> None:
    """Raise the error for arguments that a command does not take.

    Raises:
        UsageError: Always.
    """
    prompt = ctx.params.get("prompt")
    words = " ".join(rest)
    if isinstance(prompt, str) and (prompt.endswith(".gguf") or Path(prompt).is_dir()):
        raise UsageError(
            f"there are two arguments: {prompt!r} and {words!r}.",
            f'To name a model, write: {ctx.command_path} -m {prompt} "{words}"',
        )
    if isinstance(prompt, str):
        raise UsageError(
            f"the prompt is more than one argument: {words!r} follows {prompt!r}.",
            f'Put quotation marks around it: {ctx.command_path} "{prompt} {words}"',
        )
    raise UsageError(f"{ctx.command_path} does not take {words!r}.", f"See '{ctx.command_path} --help'.")


def close(word: str, known: Iterable[str]) -> list[str]:
    """The known words that were probably meant: those that begin with it, else similar ones; at most three."""
    from difflib import get_close_matches

    names = sorted(known)
    begun = [name for name in names if name.startswith(word) and len(word.strip("-")) > 2]
    return (begun or get_close_matches(word, names))[:3]


def _unknown_option(error: Any, option: str) -> tuple[str, str]:
    params = error.ctx.command.get_params(error.ctx) if error.ctx else []
    known = [name for param in params for name in param.opts if name.startswith("--")]
    found = close(option.lower().replace("_", "-"), known)
    meant = f" Did you mean {' or '.join(found)}?" if found else ""
    return f"there is no option {option}.{meant}", _see_help(error)


def _bad_value(error: Any, failure: dict[str, Any]) -> tuple[str, str]:
    """A value out of range, of another type, or not among the choices."""
    param, value = error.param, failure.get("input")
    name = max(param.opts, key=len) if param.param_type_name == "option" else param.human_readable_name
    if wanted := _WANTED.get(failure["type"]):
        return f"{name} {wanted(failure.get('ctx'))} (got {value}).", _see_help(error)
    choices = (param.metavar or "").split("|")
    if len(choices) < 2:
        return f"{name} cannot be {value!r}.", _see_help(error)
    word = str(value).lower()
    found = [_MEANT[word]] if _MEANT.get(word) in choices else close(word, choices)
    meant = f" Did you mean {found[0]}?" if found else ""
    return f"{name} must be {', '.join(choices[:-1])} or {choices[-1]} (got {value}).{meant}", _see_help(error)


def _sentence(text: str) -> str:
    """The parser's own words, as a sentence in our form."""
    text = text.strip()
    return f"{text[:1].lower()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"


def _see_help(error: Any) -> str:
    ctx = getattr(error, "ctx", None)
    return f"See '{ctx.command_path} --help'." if ctx else ""
