"""Defaults that a user sets for options: the configuration file, and variables such as `HALFBYTE_MODEL`.

    model = "phi-4-mini"
    threads = 8

    [chat]
    temperature = 0.7

An option is what the command line says, else its variable, else the file (the command's own table first), else
what is built in. The parser goes that way by itself, by its `envvar` and `default_map`; this module hands it both.
A default is weaker than an option: where it does not go with what was typed, or has no effect, it is dropped, while
an option is refused. Only the command line has such defaults; the library does not.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.cli.sampling import SETTABLE as SAMPLING
from halfbyte.cli.sampling import without_effect
from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.options import check_names

FILE_VARIABLE = "HALFBYTE_CONFIG"
"""Names another configuration file."""

_PLACE = ("model", "offline", "device", "gpu", "threads")
_RUN = (*_PLACE, "weights", "kv_dtype", "activations", "context", "batch_tokens", "cache_tokens")
_ANSWER = (*_RUN, "system", "max_tokens", *SAMPLING)
_SERVE = (
    *_RUN, "host", "port", "replicas", "sequences", "max_concurrent", "max_queue", "timeout", "grace", "idle_timeout",
    "log_prompts",
)  # fmt: skip

SETTABLE: Mapping[str, tuple[str, ...]] = {
    "run": _ANSWER, "chat": _ANSWER, "serve": _SERVE, "profile": _PLACE, "bench": _PLACE,
    "eval": ("model", "device", "gpu"), "tune": ("model", "offline", "gpu"), "plan": ("model", "offline"),
}  # fmt: skip
"""Parameters of each command that may have a default of the user. What is measured follows from options alone."""

_KEYS = {"kv_dtype": "kv-cache"}


@dataclass(frozen=True)
class Settings:
    """What the configuration file says.

    Attributes:
        path: The file; there may be none.
        common: Values by key, for every command that has the option.
        tables: Those of one command, by its name.
    """

    path: Path
    common: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, command: str) -> dict[str, Any]:
        """Values for a command of the top level, by the names of its parameters."""
        found = {**self.common, **self.tables.get(command, {})}
        return {name: found[key(name)] for name in SETTABLE.get(command, ()) if key(name) in found}


def key(name: str) -> str:
    """What a parameter is called in the configuration file: its option, without the hyphens before it."""
    return _KEYS.get(name, name.replace("_", "-"))


def plain_key(name: str) -> str:
    """A key with hyphens, which may be written with underscores as in Python."""
    return name.replace("_", "-")


def variable(name: str) -> str:
    """The variable that gives a parameter its value."""
    return "HALFBYTE_" + key(name).replace("-", "_").upper()


def config_path() -> Path:
    """The configuration file: what `HALFBYTE_CONFIG` names, else the one in the user's folder for configuration."""
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "halfbyte" / "config.toml"


def read_settings() -> Settings:
    """The configuration file, checked; empty where there is none.

    Raises:
        UsageError: It cannot be read, or has a key that is none; or `HALFBYTE_CONFIG` names a file that is not there.
    """
    path = config_path()
    if not path.exists():
        if os.environ.get(FILE_VARIABLE):
            raise UsageError(f"{path} does not exist; {FILE_VARIABLE} names it.", f"Make it, or unset {FILE_VARIABLE}.")
        return Settings(path)
    import tomllib

    from halfbyte.user_files import read_text

    try:
        document = tomllib.loads(read_text(path, f"It has your defaults. {FILE_VARIABLE} may name another file."))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Correct it there.") from error
    found = {plain_key(name): value for name, value in document.items()}
    tables = {name: found.pop(name) for name in SETTABLE if isinstance(found.get(name), dict)}
    tables = {command: {plain_key(name): value for name, value in table.items()} for command, table in tables.items()}
    try:
        for name, value in found.items():
            check_key(f"{name}." if isinstance(value, dict) else name)  # such a table is named like no command
        for command, table in tables.items():
            for name in table:
                check_key(f"{command}.{name}")
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from None
    return Settings(path, found, tables)


def check_key(name: str) -> None:
    """Refuse a key that nothing has, such as `chat.temprature`; the error names the one that was meant.

    Raises:
        UsageError: There is no such key.
    """
    command, _, plain = name.rpartition(".")
    if command:
        check_names("command with settings called", [command], SETTABLE)
    check_names(f"setting of {command}" if command else "setting", [plain], keys_of(command))


def keys_of(command: str = "") -> list[str]:
    """The keys of a command, or all that any has."""
    names: Iterable[str] = SETTABLE[command] if command else (name for some in SETTABLE.values() for name in some)
    return list(dict.fromkeys(map(key, names)))


def top_name(name: str | None, parent: Any) -> str:
    """What a command is called on the top level, itself or the group that it is in; empty for the outermost one."""
    while parent is not None and parent.parent is not None:
        name, parent = parent.info_name, parent.parent
    return name if parent is not None and name else ""


def with_settings(command: Any, name: str | None, parent: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a command's context, with its user's defaults. Raises as `read_settings` does."""
    top = top_name(name, parent)
    if top not in SETTABLE or extra.get("resilient_parsing"):
        return dict(extra)
    for param in command.params:
        if param.name in SETTABLE[top] and param.param_type_name == "option":
            param.envvar, param.show_envvar = variable(param.name), False  # all are named alike: help need not say it
    defaults = read_settings().of(top)
    model = os.environ.get(variable("model")) or defaults.get("model")
    return {"default_map": {**defaults, "models": [model] if model else None}, **extra}


def settle(ctx: Any) -> None:
    """Drop the user's defaults that do not go with the options that were typed, or have no effect beside them."""
    values = ctx.params
    weak = {name for name in values if is_default_of_user(ctx, name)}
    if not weak:
        return
    built_in = {param.name: param.default for param in ctx.command.params}
    typed = {name for name in values if _source(ctx, name) == "COMMANDLINE"}
    if "threads" in weak:
        # Unlike --threads, it does not mean that the CPU is to run the model; on the CPU it is what is usual. All that
        # loads, measures or serves looks for that in the variable, replicas too, which an argument would have to reach.
        os.environ["OMP_NUM_THREADS"] = str(values["threads"])
    without = {
        "threads": True,
        "model": "synthetic" in typed,
        "offline": "synthetic" in typed,
        "system": bool(values.get("raw")),
        "device": bool(typed & {"gpu", "threads"}),
        "gpu": "threads" in typed or values.get("device") not in (None, "auto", "gpu"),
        "cache_tokens": (values.get("cache_tokens") or 0) < (values.get("context") or 0),
        **({name: True for name, _ in without_effect(values)} if "temperature" in values else {}),
    }
    values.update({name: built_in[name] for name in weak if without.get(name)})


def is_default_of_user(ctx: Any, name: str) -> bool:
    """Whether a parameter has its value from a variable or from the configuration file."""
    return _source(ctx, name) in ("ENVIRONMENT", "DEFAULT_MAP")


def source_of(ctx: Any, name: str) -> str | None:
    """The variable or the file that gives a parameter its value; None if neither does."""
    if not is_default_of_user(ctx, name):
        return None
    return variable(name) if _source(ctx, name) == "ENVIRONMENT" else str(config_path())


def said_by(ctx: Any, name: str) -> str | None:
    """What to call a parameter whose value is a default of the user: its variable, or its key in which file."""
    source = source_of(ctx, name)
    return source if source in (None, variable(name)) else f"{key(name)} in {source}"


def tell_source(ctx: Any, error: HalfbyteError) -> None:
    """Have an error say who set the value that it is about, where that is a default of the user."""
    for name, value in ctx.params.items():
        words = (str(value),) if name == "model" else (name, key(name))
        source = source_of(ctx, name)
        if source and any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", error.message) for word in words):
            error.hint = f"{error.hint} {key(name)} is set by {source}.".strip()


def _source(ctx: Any, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return source.name if source else ""
