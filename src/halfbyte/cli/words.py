"""The words of a command line: which one is the model, and which the prompt.

What `halfbyte run …` takes them for, where NAME is a word that looks like a model, and TEXT what --file names or a pipe
brings. The default model is the pocket model.

    words             model          prompt
    PROMPT            the default    PROMPT
    NAME PROMPT       NAME           PROMPT, whatever it looks like
    -m MODEL PROMPT   MODEL          PROMPT, whatever it looks like
    NAME              on a terminal asked: begin a chat with NAME, or answer it as a prompt; elsewhere refused
    NAME, TEXT        NAME           TEXT
    PROMPT, TEXT      the default    PROMPT and TEXT
    TEXT              the default    TEXT
    NAME -            NAME           standard input
    -                 the default    standard input
    WORD WORD         refused unless the first is a NAME: a prompt is one word
    -m MODEL W W      refused
"""

from __future__ import annotations

import os.path
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from halfbyte.cli.output import accept_any_bytes
from halfbyte.cli.usage import given, named_twice, typed
from halfbyte.errors import UsageError

_HUB_ID = re.compile(
    r"((https?://)?(huggingface\.co|hf\.co)/)?[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?", re.ASCII
)
_TAGGED = re.compile(r"[A-Za-z][\w.-]*:[\w.-]+", re.ASCII)
"""As Ollama names models: `llama3.2:1b`."""


def told_apart(ctx: typer.Context, words: Sequence[str], prompt: str | None = None) -> tuple[str | None, str | None]:
    """The model and the prompt among a command's words, each None if it is not there.

    Args:
        prompt: The prompt if an option gives it; then the only word is the model.

    Raises:
        UsageError: There are too many words, or the model is named twice.
    """
    words = list(words) if prompt is None else [*words, prompt]
    named = given(ctx, "model")
    match words:
        case []:
            return None, None
        case [word] if prompt is None and not named and looks_like_model(word):
            return word, None
        case [word]:
            return None, word
        case [first, second] if not named and names_model(first):
            return first, second
    raise _too_many(ctx, words, named=named)


def looks_like_model(word: str) -> bool:
    """Whether a word alone may be the name of a model: a folder, a GGUF file, a hub id, or like a short name."""
    from halfbyte.checkpoint.open import is_gguf
    from halfbyte.models.catalog import resembling

    if os.path.isdir(word):
        return True
    if os.path.isfile(word):
        return is_gguf(Path(word))
    if word.lower().endswith(".gguf") or _HUB_ID.fullmatch(word) or _TAGGED.fullmatch(word):
        return True
    return word == "pocket" or bool(resembling(word))


def names_model(word: str) -> bool:
    """Whether a word before another one is meant as a model, also one that is not there."""
    is_path = word.startswith((".", "~")) or "/" in word or os.path.sep in word
    return (is_path and len(word.split()) == 1) or looks_like_model(word)


def refuse_prompt(ctx: typer.Context, word: str) -> None:
    """Refuse a prompt or a model that stands where a command should.

    Raises:
        UsageError: The word is one of the two.
    """
    command = ctx.command_path
    if len(word.split()) > 1:
        raise UsageError("a prompt stands in the place of a command.", f'To have it answered: {command} run "{word}"')
    if looks_like_model(word):
        raise UsageError(
            f"{word!r} is not a command, but looks like a model.",
            f'To ask it: {command} run {word} "PROMPT". To talk: {command} chat {word}',
        )


def no_prompt(model: str | None, command: str = "halfbyte run") -> UsageError:
    """The error for a command without a prompt, perhaps with a word that looks like a model."""
    if model is None:
        return UsageError("there is no prompt.", f'Give one, as in: {command} "How do I extract a tar archive?"')
    return UsageError(
        f"{model!r} looks like a model, and there is no prompt.",
        f'Add one: {command} {model} "PROMPT". To talk: halfbyte chat {model}. '
        f"If it is the prompt, name a model as well: {command} -m pocket {model}",
    )


def wants_chat(ctx: typer.Context, model: str) -> bool:
    """Ask whether a word is a model to chat with; if not, it is the prompt.

    Raises:
        UsageError: An option was given that `chat` does not have, so that neither can be meant.
    """
    known = {param.name for param in _chat(ctx).params}
    if any(given(ctx, name) for name in ctx.params if name != "words" and name not in known):
        raise no_prompt(model)
    accept_any_bytes(sys.stdin)  # before anything is read from it
    question = f"{model!r} looks like a model. Chat with it? (If not, it is answered as a prompt.)"
    return typer.confirm(question, default=None, err=True)


def can_ask() -> bool:
    """Whether somebody sees a question and can answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def begin_chat(ctx: typer.Context) -> None:
    """Run `halfbyte chat` with the arguments that were typed after this command."""
    with _chat(ctx).make_context("chat", typed(ctx), parent=ctx.find_root()) as chat:
        chat.command.invoke(chat)


def _chat(ctx: typer.Context) -> Any:
    root: Any = ctx.find_root()
    return root.command.get_command(root, "chat")


def _too_many(ctx: typer.Context, words: list[str], *, named: bool) -> UsageError:
    command, first, rest = ctx.command_path, words[0], " ".join(words[1:])
    if named and names_model(first):
        return named_twice(ctx.params["model"], first)
    if named:
        command = f"{command} -m {ctx.params['model']}"
    elif names_model(first):
        command, first, rest = f"{command} {first}", words[1], " ".join(words[2:])
    elif len(words) == 2:
        return UsageError(
            f"{first!r} is not a model: there is no such folder, file or short name, and a hub id looks like org/name.",
            f'If it belongs to the prompt, put quotation marks around all of it: {command} "{first} {rest}"',
        )
    return UsageError(
        f"the prompt is more than one argument: {rest!r} follows {first!r}.",
        f'Put quotation marks around it: {command} "{first} {rest}"',
    )
