"""How every command behaves: grouped help, `--debug` anywhere, and errors as one line and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from halfbyte.cli.output import EXIT_FILE, accept_any_bytes, print_error
from halfbyte.cli.usage import explained, in_terminal, refuse_extra
from halfbyte.errors import HalfbyteError

EXIT_BUG = 70
EXIT_MEMORY = 71
EXIT_INTERRUPTED = 130

_DEBUG = "halfbyte.debug"


def show_tracebacks(ctx: typer.Context, wanted: bool) -> None:
    """Callback of `--debug`: remembered for all levels of the command line."""
    ctx.meta[_DEBUG] = wanted or ctx.meta.get(_DEBUG, False)


class Command(TyperCommand):
    """A command whose help groups options under the headings they name, and which takes `--debug`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return with_debug(ctx, super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        wanted, ctx.allow_extra_args = ctx.allow_extra_args, True
        rest: list[str] = super().parse_args(ctx, args)
        if rest and not wanted:
            refuse_extra(ctx, rest)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group of commands; without arguments it shows its help. The outermost one turns errors into exit codes."""

    def get_params(self, ctx: Any) -> list[Any]:
        return with_debug(ctx, super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

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


def with_debug(ctx: Any, params: list[Any]) -> list[Any]:
    """The parameters, and `--debug` of the outermost command before the `--help` that ends them."""
    root = ctx.find_root().command
    shared = [p for p in root.params if p.name == "debug" and p not in params]
    return [*params[:-1], *shared, *params[-1:]]


def write_options(params: list[Any], ctx: Any, formatter: Any) -> None:
    """Write arguments and options under their headings, in the order in which these first appear."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            plain = "Arguments" if param.param_type_name == "argument" else "Options"
            sections.setdefault(getattr(param, "rich_help_panel", None) or plain, []).append(record)
    for heading, records in sections.items():
        with formatter.section(heading):
            formatter.write_dl(records)


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
