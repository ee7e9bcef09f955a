"""The command line with a model that says what it is told, in place of a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from halfbyte.answer import Generation, Token
from halfbyte.cli.app import app
from halfbyte.options import RunOptions

Script = Sequence[str | BaseException]
"""What a stream gives: pieces of text, or an exception to raise at that place."""


_KEEPING = tuple(
    f"halfbyte.{name}" for name in ("evaluation.scorer", "evaluation.sweep", "server.worker", "tasks.evaluate")
)
"""Modules that keep the `load` which they find when they are first imported."""


class FakeStream(Iterator[Token]):
    """Plays one script."""

    def __init__(self, script: Script) -> None:
        self.left = list(script)
        self.tokens: list[Token] = []
        self.closed = False

    def __next__(self) -> Token:
        if self.closed or not self.left:
            raise StopIteration
        piece = self.left.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        token = Token(10 + len(self.tokens), piece, -0.5, ((10 + len(self.tokens), -0.5), (3, float("-inf"))))
        self.tokens.append(token)
        return token

    def close(self) -> None:
        self.closed = True

    def result(self) -> Generation:
        count = len(self.tokens)
        return Generation(
            text="".join(token.text for token in self.tokens),
            token_ids=tuple(token.id for token in self.tokens),
            logprobs=tuple(token.logprob for token in self.tokens),
            prompt_tokens=7,
            num_cached_tokens=0,
            finish_reason="cancelled" if self.left else "stop",
            prefill_ms=12.5,
            ms_per_token=4.0 if count > 1 else None,
            total_s=0.5,
        )


@dataclass
class FakeModel:
    """Answers each prompt with the next script, and notes what it was asked."""

    scripts: list[Script]
    loads: list[tuple[Any, RunOptions, dict[str, Any]]] = field(default_factory=list)
    asked: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    name: str = "fake"
    device: str = "cpu"
    why_device: str = "you asked for it"
    nbytes: int = 17_400_000
    load_s: float = 0.25
    notes: tuple[str, ...] = ()
    adapter: str | None = None

    def stream(self, prompt: str | Sequence[Mapping[str, str]], **options: Any) -> FakeStream:
        self.asked.append((prompt if isinstance(prompt, str) else [dict(message) for message in prompt], options))
        self.streams.append(FakeStream(self.scripts.pop(0)))
        return self.streams[-1]

    submit = stream


def use_fake(monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> FakeModel:
    """Make `halfbyte.model.load` give a model that plays these scripts, one a prompt."""
    model = FakeModel(list(scripts))

    def load(name: Any, options: RunOptions, *, progress: Any, **source: Any) -> FakeModel:
        model.loads.append((name, options, source))
        return model

    put_load(monkeypatch, load)
    return model


def put_load(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    """Put a function in the place of `halfbyte.model.load`, for all who look for it when they need it."""
    for name in _KEEPING:
        import_module(name)
    monkeypatch.setattr("halfbyte.model.load", load)


def halfbyte(*arguments: str, stdin: str | bytes = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="halfbyte")


def error_lines(result: Result) -> list[str]:
    """Lines of standard error; the test fails on a traceback."""
    lines: list[str] = result.stderr.splitlines()
    assert "Traceback" not in result.stderr
    return lines
