"""Answers of `run` as they are printed: text while it comes or a line of JSON, and figures at the end."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from halfbyte.cli.output import note, print_table
from halfbyte.cli.prompts import Request, placed
from halfbyte.cli.sampling import unsupported
from halfbyte.errors import HalfbyteError

if TYPE_CHECKING:
    from halfbyte.answer import Generation, Stream, Token
    from halfbyte.model import Model

FIGURES = ("prompt_tokens", "new_tokens", "prefill_ms", "ms_per_token", "tokens_per_s", "total_s")


class Stats:
    """Figures of answers, kept for a table at the end."""

    def __init__(self) -> None:
        self._rows: list[list[str]] = []
        self._unsupported = ""

    def add(self, request: Request, generation: Generation) -> None:
        """Keep the figures of an answer."""
        self._rows.append([_cell(name, getattr(generation, name)) for name in FIGURES])
        if generation.logits_read_back:
            self._unsupported = unsupported(request.options)

    def show(self) -> None:
        """Print the table on standard error, if there is anything in it."""
        if self._rows:
            print_table(FIGURES, self._rows, least_important=("prefill_ms", "ms_per_token"), file=sys.stderr)
        if self._unsupported:
            note(f"The tokens were sampled on the CPU: the GPU sampler does not support {self._unsupported}.")


def answer(
    model: Model, request: Request, stream: Stream, stats: Stats | None, *, echo: bool
) -> tuple[Generation, list[Token]]:
    """Take one answer, printed as it comes if `echo`; its figures are kept even if an error ends it early."""
    tokens: list[Token] = []
    try:
        for token in stream:
            tokens.append(token)
            if echo and token.text:
                sys.stdout.write(token.text)
                sys.stdout.flush()
    except HalfbyteError as error:
        raise placed(error, request) from error
    finally:
        stream.close()
        if stats is not None and tokens:
            stats.add(request, stream.result())
        if echo:
            _end_line("".join(token.text for token in tokens))
    if echo and not stream.result().text:
        note(f"({_why_empty(model, request)})")
    return stream.result(), tokens


def record(request: Request, generation: Generation, tokens: list[Token]) -> dict[str, Any]:
    """The line of `--json`; with log-probabilities if the request asks for them."""
    values: dict[str, Any] = {
        **request.given,
        "text": generation.text,
        "token_ids": [int(token_id) for token_id in generation.token_ids],
        "finish_reason": generation.finish_reason,
        **{name: _figure(getattr(generation, name)) for name in FIGURES},
    }
    if request.options.get("logprobs"):
        values["logprobs"] = [
            {
                "id": int(token.id),
                "text": token.text,
                "logprob": _figure(token.logprob),
                "top": [[int(token_id), _figure(value)] for token_id, value in token.top_logprobs],
            }
            for token in tokens
        ]
    return values


def say_cut(model: Model, request: Request, generation: Generation, *, always: bool) -> None:
    """Say why an answer ended early, if it did: on a terminal, if `always`, or if the context was full."""
    reason, stopped = generation.finish_reason, f"stopped after {generation.new_tokens} tokens"
    if reason == "length" and (always or sys.stderr.isatty()):
        note(f"({stopped}: --max-tokens {request.options['max_tokens']})")
    if reason == "context":
        note(f"({stopped}: the context of {model.plan.context:,} tokens is full)")


def has_chat_template(model: Model) -> bool:
    """Whether text is answered rather than continued."""
    tokenizer = getattr(model, "tokenizer", None)  # a model that stands in for another may have none
    return tokenizer is None or bool(tokenizer.has_chat_template)


def _end_line(text: str) -> None:
    """End the line of an answer, unless the answer did, or has no text."""
    if text and not text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()


def _why_empty(model: Model, request: Request) -> str:
    said = "The answer has no text: the model ended it at once."
    if request.options.get("raw") or has_chat_template(model):
        return said
    return f"{said} {model.name} has no chat template, so it continues text instead of answering."


def _figure(value: float | None) -> float | int | None:
    """A figure for JSON; None if it does not exist, such as the time per token of a single token."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else round(float(value), 6)


def _cell(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if name == "total_s" else f"{value:.2f}"
