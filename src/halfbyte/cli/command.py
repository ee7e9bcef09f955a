"""How every command behaves: grouped help, `--debug` anywhere, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from halfbyte.cli.exit_codes import EXIT_BUG, EXIT_FILE, EXIT_INTERRUPTED, EXIT_MEMORY
from halfbyte.cli.habits import add_habits, refuse_command, refuse_habits
from halfbyte.cli.output import accept_any_bytes, print_error
from halfbyte.cli.settings import settle, tell_source, with_settings
from halfbyte.cli.usage import explained, given, in_terminal, keep_typed, named_twice, refuse_extra
from halfbyte.cli.words import refuse_prompt
from halfbyte.errors import HalfbyteError

_DEBUG = "halfbyte.debug"

_BETTER = (
    (r"default: \((.+?)\)(?=[];])", r"default: \1"),
    (r"default: (\d+)\.0(?=[];])", r"default: \1"),
    (r"(; |  \[)x>=[01]\]$", lambda found: "]" if found[1] == "; " else ""),
    (r"x>=(\S+)\]$", r"at least \1]"),
    (r"(\S+)<=x<=(\S+)\]$", r"\1 to \2]"),
)
"""Patterns of what the parser's library writes behind a line of help, and what is written instead."""


def show_tracebacks(ctx: typer.Context, wanted: bool) -> None:
    """Callback of `--debug`: remembered for all levels of the command line."""
    ctx.meta[_DEBUG] = wanted or ctx.meta.get(_DEBUG, False)


class Command(TyperCommand):
    """A command whose help groups options under the headings they name, and which takes `--debug`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return with_debug(ctx, super().get_params(ctx))

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return settled(super().make_context, self, info_name, args, parent, extra)

    def make_parser(self, ctx: Any) -> Any:
        return with_habits(ctx, super().make_parser(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        check_habits(ctx, args)
        keep_typed(ctx, args)
        wanted, ctx.allow_extra_args = ctx.allow_extra_args, True
        rest: list[str] = super().parse_args(ctx, args)
        if rest and not wanted:
            refuse_extra(ctx, rest)
        argument = ctx.params.get("named")
        if argument is not None and given(ctx, "model"):
            raise named_twice(ctx.params["model"], argument)
        return rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HalfbyteError as error:
            tell_source(ctx, error)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(str(param.metavar) for param in self.params if param.param_type_name == "argument")]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group of commands; without arguments it shows its help. The outermost one turns errors into exit codes."""

    works_alone = False
    """Whether it does something without arguments."""

    def get_params(self, ctx: Any) -> list[Any]:
        return with_debug(ctx, super().get_params(ctx))

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return settled(super().make_context, self, info_name, args, parent, extra)

    def make_parser(self, ctx: Any) -> Any:
        return with_habits(ctx, super().make_parser(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        if not args and not self.works_alone:
            args = ["--help"]
        check_habits(ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if ctx.parent is None and args[0] not in self.commands and not ctx.resilient_parsing:
            refuse_command(args[0])
            refuse_prompt(ctx, args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.parent is None and ctx.meta.get(_DEBUG) and not isinstance(error, typer.Exit | typer.TyperException):
                traceback.print_exc()
            raise

    def main(self, *args: Any, **options: Any) -> Any:
        """Run and exit: 0, or the code of the error that was printed."""
        accept_any_bytes(sys.stdout)
        try:
            code = super().main(*args, **options | {"standalone_mode": False})
        except Exception as error:
            code = report(error)
        sys.exit(code if isinstance(code, int) else 0)


def asks_for_help(args: list[str]) -> bool:
    """Whether a command is only to show its help, which tells what is built in."""
    return not {"-h", "--help"}.isdisjoint(args)


def with_habits(ctx: Any, parser: Any) -> Any:
    """A command's parser, which knows what other programs call its options; not of one that passes options on."""
    if not ctx.ignore_unknown_options:
        add_habits(parser, ctx, ctx.command.params)
    return parser


def check_habits(ctx: Any, args: list[str]) -> None:
    """Refuse options of other programs. Raises a UsageError that says what to write instead."""
    if not ctx.resilient_parsing:
        refuse_habits(ctx.command.make_parser(ctx).parse_args(list(args))[2])


def settled(make: Callable[..., Any], command: Any, name: Any, args: list[str], parent: Any, extra: Any) -> Any:
    """The context that `make` makes for arguments, with the user's defaults where no option was typed."""
    if not asks_for_help(args):
        extra = with_settings(command, name, parent, extra)
    ctx = make(name, args, parent, **extra)
    settle(ctx)
    return ctx


def with_debug(ctx: Any, params: list[Any]) -> list[Any]:
    """The parameters, and `--debug` of the outermost command before the `--help` that ends them."""
    root = ctx.find_root().command
    shared = [p for p in root.params if p.name == "debug" and p not in params]
    return [*params[:-1], *shared, *params[-1:]]


def write_options(params: list[Any], ctx: Any, formatter: Any) -> None:
    """Write arguments, then options under their headings, in the order in which these first appear."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            name, text = record
            heading = getattr(param, "rich_help_panel", None) or "Options"
            if param.param_type_name == "argument":  # the usage line says whether it is required
                name, text, heading = param.metavar, text.removesuffix("  [required]"), "Arguments"
            sections.setdefault(heading, []).append((name, in_words(text)))
    for heading, records in sections.items():
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)


def in_words(text: str) -> str:
    """A line of help with its default and range as a person writes them, without a range that goes without saying."""
    for found, better in _BETTER:
        text = re.sub(found, better, text)
    return text


def report(error: Exception) -> int:
    """Print what an error means to the user; returns the exit code."""
    match error:
        case HalfbyteError():
            print_error(in_terminal(error.message), in_terminal(error.hint))
            return error.exit_code
        case typer.TyperException():
            print_error(*explained(error))
            return error.exit_code
        case typer.Abort():
            print_error("no answer was given.")
            return EXIT_INTERRUPTED
        case MemoryError():
            print_error("there is not enough memory.", "Use a smaller model or a smaller --context.")
            return EXIT_MEMORY
        case OSError():
            print_error(*_file_error(error))
            return EXIT_FILE
        case _:
            print_error(
                f"this is a bug in Halfbyte: {type(error).__name__}: {error}",
                "Please report it with the command you ran and what it prints with --debug.",
            )
            return EXIT_BUG


def _file_error(error: OSError) -> tuple[str, str]:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}.", "Free some space and run the same command again."
    return f"{error.strerror or error}{where}.", "Check the path and its permissions."
