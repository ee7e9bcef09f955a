"""Errors in the command line as plain sentences: what was typed, what is allowed, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

from halfbyte.cli.habits import other_names
from halfbyte.cli.settings import said_by
from halfbyte.errors import UsageError

_MEANT = dict.fromkeys(("cuda", "rocm", "vulkan", "metal", "mps", "webgpu"), "gpu") | {"numpy": "reference"}
"""Values of other programs, and ours that they mean."""

_OPTIONS = {"kv_dtype": "kv-cache", "layout": "to"}
"""Options that have another name than the argument; the others only have hyphens for underlines."""

_NAMES = (
    "activations|allow_requantize|awq_scales|batch_tokens|bits|budget|cache_tokens|calibration|calibration_tokens|clip|"
    "context|device|each_token|gpu|kind|kv_dtype|layout|method|overwrite|protocol|raw|refine|restart|stride|threads|"
    "weights|zero_points"
)
_ARGUMENT = re.compile(rf"\b({_NAMES})=(?:'([^']*)'|(\w+))|`({_NAMES})`")

_TYPED = "halfbyte.typed"

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
    """A text of the library with its arguments as options of the command line.

    `device='cpu'` becomes --device cpu, `overwrite=True` --overwrite, and a name in backquotes, such as `clip`, --clip.
    """
    return _ARGUMENT.sub(_option, text)


def _option(argument: re.Match[str]) -> str:
    name, value = argument[1] or argument[4], argument[2] or argument[3]
    option = f"--{_OPTIONS.get(name, name.replace('_', '-'))}"
    return option if value in (None, "True") else f"{option} {value}"


def given(ctx: Any, name: str) -> bool:
    """Whether a parameter was given on the command line, not by a default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def keep_typed(ctx: Any, args: Sequence[str]) -> None:
    """Keep the arguments of a command for `typed`."""
    ctx.meta[_TYPED] = tuple(args)


def typed(ctx: Any) -> list[str]:
    """The arguments of the command as they were typed."""
    return list(ctx.meta[_TYPED])


def refuse_before(ctx: Any, command: str) -> None:
    """Refuse options of a group that stand before one of its commands, which does not see them.

    Raises:
        UsageError: There are some.
    """
    for param in ctx.command.params:
        if given(ctx, param.name):
            option = max(param.opts, key=len)
            raise UsageError(
                f"{option} has no effect before {command!r}.",
                f"If it is meant for that: {ctx.command_path} {command} {option} …",
            )


def refuse_extra(ctx: Any, rest: list[str]) -> None:
    """Raise the error for arguments that a command does not take.

    Raises:
        UsageError: Always.
    """
    words, hint = " ".join(rest), f"See '{ctx.command_path} --help'."
    if ctx.info_name == "quantize":
        hint = "Formats are options, such as --bits 4. To write GGUF: halfbyte export SOURCE TARGET.gguf --kind q4_k_m"
    raise UsageError(f"{ctx.command_path} does not take {words!r}.", hint)


def named_twice(option: str, argument: str) -> UsageError:
    """The error for a model that is named by --model as well as by an argument."""
    return UsageError(
        f"the model is named twice: {option!r} with --model, and {argument!r}.", "Leave out one of the two."
    )


def close(word: str, known: Iterable[str]) -> list[str]:
    """The known words that were probably meant: those that begin with it, else similar ones; at most three."""
    from difflib import get_close_matches

    names = sorted(known)
    begun = [name for name in names if name.startswith(word) and len(word.strip("-")) > 2]
    return (begun or get_close_matches(word, names))[:3]


def _unknown_option(error: Any, option: str) -> tuple[str, str]:
    params = error.ctx.command.get_params(error.ctx) if error.ctx else []
    known = {name: max(param.opts, key=len) for param in params for name in (*param.opts, *other_names(param))}
    if error.ctx and error.ctx.parent is None and _is_option_of(error.ctx, "run", option):
        return f"{option} is an option of commands.", f"Write it after the command: halfbyte run {option} …"
    near = close(option.lower().replace("_", "-"), (name for name in known if name.startswith("--")))
    found = list(dict.fromkeys(known[name] for name in near))
    meant = f" Did you mean {' or '.join(found)}?" if found else ""
    return f"there is no option {option}.{meant}", _see_help(error)


def _is_option_of(root: Any, command: str, option: str) -> bool:
    """Whether a command has an option, under any of its names."""
    params = root.command.get_command(root, command).params
    return any(option in (*param.opts, *other_names(param)) for param in params)


def _bad_value(error: Any, failure: dict[str, Any]) -> tuple[str, str]:
    """A value out of range, of another type, or not among the choices."""
    param, value = error.param, failure.get("input")
    name = max(param.opts, key=len) if param.param_type_name == "option" else param.human_readable_name
    name = (error.ctx and said_by(error.ctx, param.name)) or name
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
