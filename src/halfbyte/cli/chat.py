"""`halfbyte chat`: a conversation of many turns, streamed.

On a terminal it reads from a prompt that edits several lines, and draws Markdown; otherwise each line of standard input
is entered, and answers are written as they are. An error or Ctrl-C ends an answer, never the conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.chat_commands import Leave, commands, enter, figures
from halfbyte.cli.conversation import Conversation, Show, WhenFull
from halfbyte.cli.loading import ADAPTERS, FILES, NAMED, RUN, Chosen, say_loaded, takes_model
from halfbyte.cli.output import accept_any_bytes, note, print_error, print_pairs, styled
from halfbyte.cli.prompts import read_variables
from halfbyte.cli.sampling import Sampling, takes_sampling
from halfbyte.cli.typeahead import keys_kept
from halfbyte.errors import HalfbyteError

WhenFullOption = Annotated[
    WhenFull,
    typer.Option(
        "--when-full",
        metavar="stop|drop",
        help="If the context is full: stop, or drop the oldest turns.",
        rich_help_panel="Text",
    ),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Show answers as they are, not as Markdown.", rich_help_panel="Output")
]


@takes_model(NAMED, *FILES, *RUN, *ADAPTERS)
@takes_sampling()
def chat(
    *,
    chosen: Chosen,
    system: opt.System = None,
    chat_template_kwargs: opt.TemplateVariables = None,
    max_tokens: opt.MaxTokens = 1024,
    stop: opt.Stop = None,
    when_full: WhenFullOption = "stop",
    sampling: Sampling,
    plain: Plain = False,
    stats: opt.Stats = False,
    verbose: opt.Verbose = False,
) -> None:
    """Talk with a model; /help lists the commands."""
    accept_any_bytes(sys.stdin)
    variables = read_variables(chat_template_kwargs)
    with keys_kept() as keys:
        loaded = chosen.load()
        conversation = Conversation(
            model=loaded,
            chosen=chosen,
            arguments={
                "max_tokens": max_tokens,
                "stop": tuple(stop or ()),
                "template_variables": variables,
                **sampling,
            },
            show=_show(plain=plain),
            system=system,
            when_full=when_full,
        )
        if verbose:
            say_loaded(loaded)
        if not sys.stdin.isatty():
            if failed := converse(conversation, iter(sys.stdin.readline, ""), stats=stats):
                raise typer.Exit(failed.exit_code)
            return
        from halfbyte.cli.chat_prompt import typed

        note(f"{loaded.name} on {loaded.device}. /help lists commands, Ctrl-D leaves.")
        converse(conversation, typed(commands(), keys), stats=stats)


def converse(conversation: Conversation, entries: Iterable[str], *, stats: bool) -> HalfbyteError | None:
    """Carry out what is entered until `/quit` or the end, with figures after each answer if `stats`.

    Returns:
        The error of the last entry, if it had one.
    """
    failed: HalfbyteError | None = None
    for text in filter(None, map(str.strip, entries)):
        before = conversation.last
        try:
            enter(conversation, text)
        except Leave:
            break
        except KeyboardInterrupt:
            note("(stopped)")
        except HalfbyteError as error:
            failed = error
            print_error(error.message, error.hint)
        else:
            failed = None
        if stats and conversation.last is not None and conversation.last is not before:
            print_pairs(figures(conversation), file=sys.stderr)
    return failed


def _show(*, plain: bool) -> Show:
    if plain or not styled(sys.stdout):
        return _plain
    from halfbyte.cli.markdown import markdown

    return markdown


@contextmanager
def _plain() -> Iterator[Callable[[str], None]]:
    """Write an answer as it is, and end its line."""
    written = False

    def write(text: str) -> None:
        nonlocal written
        written = True
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        yield write
    finally:
        if written:
            sys.stdout.write("\n")
            sys.stdout.flush()
