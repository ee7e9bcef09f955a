"""`halfbyte config`: the defaults that are in force, where they come from, and how to change them."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte import atomic
from halfbyte.cli import options as opt
from halfbyte.cli.command import Command, Group
from halfbyte.cli.output import note, print_json, print_table
from halfbyte.cli.settings import (
    SETTABLE,
    check_key,
    config_path,
    key,
    keys_of,
    plain_key,
    read_settings,
    source_of,
    with_settings,
)
from halfbyte.errors import UsageError
from halfbyte.user_files import read_text

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

BUILT_IN = "built in"
SHOWN = ("run", "chat", "serve")
"""Commands whose settings are all shown; of others those that the file has in their own table."""


def _keys(incomplete: str) -> list[str]:
    """Completions of a key; those of a command once its name is there."""
    command, dot, _ = incomplete.rpartition(".")
    known = [f"{command}{dot}{name}" for name in keys_of(command)] if command in ("", *SETTABLE) else []
    return [name for name in known if name.startswith(incomplete)]


Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="An option without its hyphens, such as temperature; of one command as chat.temperature.",
        autocompletion=_keys,
    ),
]
Value = Annotated[str, typer.Argument(metavar="VALUE", help="Its value.")]


class _Config(Group):
    """Shows the settings without a command too."""

    works_alone = True


app = typer.Typer(cls=_Config, rich_markup_mode=None)


@dataclass(frozen=True)
class Setting:
    """A default in force.

    Attributes:
        key: Its key; with a command before it where commands differ.
        value: Its value; None where that depends on the model or the machine.
        shown: The same for a person.
        source: The variable or the file that says so, or `built in`.
    """

    key: str
    value: Any
    shown: str
    source: str


@app.callback(invoke_without_command=True)
def config(ctx: typer.Context, json: opt.Json = False) -> None:
    """Show or change the defaults of options.

    An option that is not given is what its variable says (HALFBYTE_MODEL, HALFBYTE_KV_CACHE), else the configuration
    file, else what is built in. In the file a key is an option without its hyphens; a table is for one command:

    \b
    model = "phi-4-mini"
    [chat]
    temperature = 0.7
    """
    if ctx.invoked_subcommand is not None:
        return
    found = list(_in_force(ctx))
    if json:
        print_json([{"key": each.key, "value": each.value, "source": each.source} for each in found], indent=2)
    else:
        print_table(("KEY", "FROM", "VALUE"), [(each.key, each.source, each.shown) for each in found])


@app.command(cls=Command)
def path() -> None:
    """Print the path of the configuration file."""
    print(config_path())


@app.command("set", cls=Command)
def set_value(ctx: typer.Context, name: Key, value: Value) -> None:
    """Set a default in the configuration file."""
    check_key(name := plain_key(name))
    command, _, plain = name.rpartition(".")
    checked = _checked(ctx, [command, *SETTABLE] if command else list(SETTABLE), plain, value)
    document = _document()
    table = _table(document, command)
    table[_written(table, plain)] = checked
    _write(document)
    note(f"{name} is {checked} in {config_path()}")


@app.command(cls=Command)
def unset(name: Key) -> None:
    """Remove a default from the configuration file."""
    command, _, plain = plain_key(name).rpartition(".")
    document = _document()
    table = _table(document, command)
    if (written := _written(table, plain)) not in table:
        raise UsageError(f"{config_path()} does not set {name}.", "`halfbyte config` shows what is set.")
    del table[written]
    _write(document)
    note(f"{name} is no longer set in {config_path()}")


def _in_force(ctx: typer.Context) -> Iterator[Setting]:
    """Every setting: once where commands have it in common, else of each command."""
    commands = {command: {each.key: each for each in _of_command(ctx, command)} for command in SHOWN}
    for name in keys_of():
        found = {command: settings[name] for command, settings in commands.items() if name in settings}
        if len({(each.shown, each.source) for each in found.values()}) == 1:
            yield next(iter(found.values()))
        else:
            yield from (Setting(f"{c}.{name}", each.value, each.shown, each.source) for c, each in found.items())
    for command, table in read_settings().tables.items():
        for name, value in table.items():
            if name not in commands.get(command, {}):
                yield Setting(f"{command}.{name}", value, str(value), str(config_path()))


def _of_command(ctx: typer.Context, command: str) -> Iterator[Setting]:
    """The settings of one command, as its parser finds them where nothing is typed."""
    found, root = _command(ctx, command), ctx.find_root()
    inner = found.context_class(found, info_name=command, parent=root, **with_settings(found, command, root, {}))
    for param in found.params:
        if param.name not in SETTABLE[command]:
            continue
        value, source = param.consume_value(inner, {})
        inner.set_parameter_source(param.name, source)
        value, said = param.process_value(inner, value), source_of(inner, param.name)
        if param.name == "threads" and value is None and (usual := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
            value, said = int(usual), "OMP_NUM_THREADS"
        without = param.show_default if isinstance(param.show_default, str) else "-"
        shown = without if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        yield Setting(key(param.name), value, shown, said or BUILT_IN)


def _checked(ctx: typer.Context, commands: list[str], plain: str, value: str) -> Any:
    """A value as the first of some commands takes it that has the option, which refuses others."""
    found, param = next(
        (found, param)
        for found in (_command(ctx, command) for command in commands)
        for param in found.params
        if key(param.name) == plain
    )
    return param.process_value(found.context_class(found, info_name=found.name, parent=ctx.find_root()), value)


def _command(ctx: typer.Context, name: str) -> Any:
    """A command of the top level; of a group without options its first one."""
    root: Any = ctx.find_root()
    found = root.command.get_command(root, name)
    return found if found.params else next(iter(found.commands.values()))


def _document() -> TOMLDocument:
    """The configuration file with its comments; empty where there is none."""
    import tomlkit

    path = config_path()
    if not path.exists():
        return tomlkit.document()
    try:
        return tomlkit.parse(read_text(path, "It has your defaults."))
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Correct it there.") from error


def _table(document: TOMLDocument, command: str) -> MutableMapping[str, Any]:
    """The table of a command, or the keys of all commands."""
    table = document.setdefault(command, {}) if command else document
    if not isinstance(table, MutableMapping):
        raise UsageError(f"{config_path()}: {command} is not a table.", f"Write [{command}] there.")
    return table


def _written(table: MutableMapping[str, Any], plain: str) -> str:
    """How a table spells a key."""
    return next((name for name in table if plain_key(name) == plain), plain)


def _write(document: TOMLDocument) -> None:
    import tomlkit

    path = config_path().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, tomlkit.dumps(document))
