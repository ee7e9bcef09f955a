"""`halfbyte run`: answer one prompt, or each prompt of a file."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, RUN, Chosen, takes_model
from halfbyte.cli.output import note, print_error, print_json, print_table
from halfbyte.cli.prompts import Request, placed, read_requests, single_request
from halfbyte.cli.sampling import Sampling, takes_sampling, unsupported
from halfbyte.errors import ContextFullError, HalfbyteError, TemplateError, UsageError
from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.answer import Generation, Stream, Token
    from halfbyte.model import Model

SEQUENCES = 8
"""Prompts of a file that are answered at once."""
_OF_ONE_LINE = (UsageError, ContextFullError, TemplateError)
"""Errors that say nothing about the other lines of a file."""

FIGURES = ("prompt_tokens", "new_tokens", "prefill_ms", "ms_per_token", "tokens_per_s", "total_s")

Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT", help="The prompt. Text piped into standard input is put after it; - is that text alone."
    ),
]


@takes_model(*FILES, *RUN)
@takes_sampling("logprobs")
def run(
    prompt: Prompt = None,
    *,
    chosen: Chosen,
    system: opt.System = None,
    raw: opt.Raw = False,
    max_tokens: opt.MaxTokens = 256,
    stop: opt.Stop = None,
    ignore_eos: opt.IgnoreEos = False,
    sampling: Sampling,
    prompts: opt.Prompts = None,
    sequences: opt.Sequences = None,
    prompt_cache: opt.PromptCache = None,
    json: opt.JsonLines = False,
    stats: opt.Stats = False,
    verbose: opt.Verbose = False,
) -> None:
    """Answer a prompt, or each prompt of a file."""
    if sampling["logprobs"] and not json:
        raise UsageError("--logprobs has no effect without --json.", "Add --json.")
    if sequences is not None and prompts is None:
        raise UsageError("--sequences has no effect without --prompts.", "Add --prompts.")
    if prompt_cache is not None and prompts is not None:
        raise UsageError("--prompt-cache holds one prompt; --prompts has many.", "Give one of the two.")
    requests = _requests(prompt, prompts, chosen.model, system=system, raw=raw, max_tokens=max_tokens)
    arguments = {"stop": tuple(stop or ()), "raw": raw, "ignore_eos": ignore_eos, **sampling}

    together = 1 if prompts is None else min(len(requests), sequences or SEQUENCES)
    start = time.perf_counter()
    loaded = replace(chosen, run=replace(chosen.run, sequences=together)).load()
    if verbose:
        _say_loaded(loaded, time.perf_counter() - start)
    if not raw and not _has_chat_template(loaded):
        note(f"{loaded.name} has no chat template: the prompt is continued as plain text, as with --raw.")
    if prompt_cache is not None:
        _share_prompt(loaded, requests[0], prompt_cache, raw=raw)
        arguments["cache_prompt"] = True
    with closing(_begun(loaded, requests, arguments, together)) as begun:
        _answer_all(loaded, begun, arguments, titled=len(requests) > 1, json=json, stats=stats, verbose=verbose)


def _requests(
    prompt: str | None, prompts: Path | None, model: str | None, *, system: str | None, raw: bool, max_tokens: int
) -> list[Request]:
    """The prompts to answer, checked before anything is loaded."""
    if prompts is not None and prompt is not None:
        raise UsageError("there are both a prompt and --prompts.", "Give one of the two.")
    if prompts is not None:
        requests = read_requests(prompts, system=system, max_tokens=max_tokens)
    else:
        requests = [single_request(prompt, system=system, max_tokens=max_tokens, model=model)]
    if raw and system is not None:
        raise UsageError("a system message cannot be used without a chat template.", "Leave out --raw or the message.")
    return requests


def _say_loaded(model: Model, seconds: float) -> None:
    note(f"{model.name}: {size(model.nbytes)}, loaded in {seconds:.2f} s")
    note(f"running on {model.device}: {model.why_device}")
    for line in model.notes:
        note(line)


def _share_prompt(model: Model, request: Request, file: Path, *, raw: bool) -> None:
    """Have the KV cache hold a prompt as a file does; if there is no file, compute the prompt and write it.

    Raises:
        UsageError: The file holds another prompt, or does not go with the model.
    """
    try:
        if not file.exists():
            model.save_cache(file, request.prompt, raw=raw, system=request.system)
            return
        ids = model.encode(request.prompt, raw=raw, system=request.system)
    except HalfbyteError as error:
        raise placed(error, request) from error
    held = model.load_cache(file)
    if ids[: len(held)] != held:
        same = next((i for i, (ours, theirs) in enumerate(zip(ids, held, strict=False)) if ours != theirs), len(ids))
        raise UsageError(
            f"{file} holds another prompt: {len(held):,} tokens, of which the first {same:,} are those of this one.",
            "Use another file, or delete it to have it made anew.",
        )


def _begun(
    model: Model, requests: list[Request], arguments: dict[str, Any], together: int
) -> Generator[tuple[Request, Stream | HalfbyteError], None, None]:
    """Each request with its answer, or why it has none; answers are begun early where several are computed at once."""
    coming = iter(requests)
    waiting: deque[tuple[Request, Stream | HalfbyteError]] = deque()
    try:
        while True:
            for request in islice(coming, together - len(waiting)):
                waiting.append((request, _begin(model, request, arguments, together)))
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        for _, answer in waiting:
            if not isinstance(answer, HalfbyteError):
                answer.close()


def _begin(model: Model, request: Request, arguments: dict[str, Any], together: int) -> Stream | HalfbyteError:
    if request.error:
        return request.error
    begin = model.submit if together > 1 else model.stream
    try:
        return begin(request.prompt, system=request.system, max_tokens=request.max_tokens, **arguments)
    except HalfbyteError as error:
        return placed(error, request)


def _answer_all(
    model: Model,
    begun: Iterable[tuple[Request, Stream | HalfbyteError]],
    arguments: dict[str, Any],
    *,
    titled: bool,
    json: bool,
    stats: bool,
    verbose: bool,
) -> None:
    """Print each answer as it comes; figures at the end, also when an error or Ctrl-C ends it early."""
    done: list[Generation] = []
    failed: list[HalfbyteError] = []
    try:
        for index, (request, answer) in enumerate(begun):
            if titled and not json:
                sys.stdout.write("\n" * (index > 0))
                note(f"> {request.where if request.error else request.shown}")
            try:
                generation, tokens = _answer(model, request, answer, arguments, done, echo=not json)
            except _OF_ONE_LINE as error:
                if not request.where:
                    raise
                failed.append(error)
                _say_failed(request, error, json=json)
                continue
            if json:
                print_json(_record(request, generation, tokens if arguments["logprobs"] else None))
            elif verbose or sys.stderr.isatty() or generation.finish_reason == "context":
                _say_cut(model, request, generation)
    finally:
        if stats and done:
            rows = [[_cell(name, getattr(generation, name)) for name in FIGURES] for generation in done]
            print_table(FIGURES, rows, file=sys.stderr)
            if any(generation.logits_read_back for generation in done):
                note(f"The tokens were sampled on the CPU: the GPU sampler does not support {unsupported(arguments)}.")
    if failed:
        raise typer.Exit(failed[0].exit_code)


def _say_failed(request: Request, error: HalfbyteError, *, json: bool) -> None:
    """Say why one line of a file has no answer; the others still get theirs."""
    if json:
        kind = type(error).__name__
        print_json({**request.given, "error": {"type": kind, "message": error.message, "hint": error.hint}})
    print_error(error.message, error.hint)


def _say_cut(model: Model, request: Request, generation: Generation) -> None:
    """Say why an answer ended early, if it did."""
    if generation.finish_reason == "length":
        note(f"(stopped after {generation.new_tokens} tokens: --max-tokens {request.max_tokens})")
    if generation.finish_reason == "context":
        note(f"(stopped after {generation.new_tokens} tokens: the context of {model.plan.context:,} tokens is full)")


def _answer(
    model: Model,
    request: Request,
    stream: Stream | HalfbyteError,
    arguments: dict[str, Any],
    done: list[Generation],
    *,
    echo: bool,
) -> tuple[Generation, list[Token]]:
    """Stream one answer, printed as it comes if `echo`; it goes to `done` even if an error ends it early."""
    if isinstance(stream, HalfbyteError):
        raise stream
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
        if tokens:
            done.append(stream.result())
        if echo:
            _end_line("".join(token.text for token in tokens))
    if echo and not stream.result().text:
        note(f"({_why_empty(model, arguments)})")
    return stream.result(), tokens


def _end_line(text: str) -> None:
    """End the line of an answer, unless the answer did, or has no text."""
    if text and not text.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()


def _has_chat_template(model: Model) -> bool:
    tokenizer = getattr(model, "tokenizer", None)  # a model that stands in for another may have none
    return tokenizer is None or bool(tokenizer.has_chat_template)


def _why_empty(model: Model, arguments: dict[str, Any]) -> str:
    said = "The answer has no text: the model ended it at once."
    if arguments["raw"] or _has_chat_template(model):
        return said
    return f"{said} {model.name} has no chat template, so it continues text instead of answering."


def _record(request: Request, generation: Generation, tokens: list[Token] | None) -> dict[str, Any]:
    """The line of `--json`; with log-probabilities when tokens are given."""
    record: dict[str, Any] = {
        **request.given,
        **request.asked,
        "text": generation.text,
        "token_ids": [int(token_id) for token_id in generation.token_ids],
        "finish_reason": generation.finish_reason,
        **{name: _figure(getattr(generation, name)) for name in FIGURES},
    }
    if tokens is not None:
        record["logprobs"] = [
            {
                "id": int(token.id),
                "text": token.text,
                "logprob": _figure(token.logprob),
                "top": [[int(token_id), _figure(value)] for token_id, value in token.top_logprobs],
            }
            for token in tokens
        ]
    return record


def _figure(value: float | None) -> float | int | None:
    """A figure for JSON; None if it does not exist, such as the time per token of a single token."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, int) else round(float(value), 6)


def _cell(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if name == "total_s" else f"{value:.2f}"
