"""`POST /v1/completions`: text or token ids continued as they are, without a chat template."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.async_answer import AsyncStream
from halfbyte.errors import UsageError
from halfbyte.model import AnswerOptions, Model
from halfbyte.server.conversation import Finish, Piece, PlainReader, Progress, TextDelta, Usage, follow, merged
from halfbyte.server.errors import ApiError
from halfbyte.server.exchange import Exchange, exchange_of
from halfbyte.server.json import JsonResponse, dumps
from halfbyte.server.limits import read_object, unless_left
from halfbyte.server.openai_chat import check_count, events_of, head_of
from halfbyte.server.openai_forms import Formed
from halfbyte.server.openai_options import StreamOptions, parsed, usage
from halfbyte.server.serving import Serving, serving_of, with_limits
from halfbyte.server.sse import event
from halfbyte.server.tokens import LEAST, TokenLogprob, prompt_logprob
from halfbyte.text.forms import Form

_MAX_TOKENS = 16
"""What OpenAI takes if nothing is said."""

Prompts = list[str] | list[list[int]]


class CompletionRequest(Formed):
    """The body of a request."""

    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Refuse what there is not.

        Raises:
            UsageError: With the parameter's name.
        """
        if self.suffix:
            raise UsageError("suffix is not supported.", "Leave it out: text can only be continued at its end.")
        if self.best_of not in (None, self.count):
            raise UsageError(f"best_of is {self.best_of}.", "Leave it out: all answers are returned.")


def prompts_of(name: str, given: object, most: int) -> Prompts:
    """Each prompt as text or as token ids, given as some parameter.

    Raises:
        ApiError: 400: It is something else, or there are too many.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(type(each) is int for each in given):
            return [given]
        if len(given) > most:
            raise ApiError(400, f"{name} has {len(given)} prompts.", f"Send at most {most}.", param=name)
        if all(isinstance(each, str) for each in given):
            return list(given)
        if all(isinstance(each, list) and all(type(token) is int for token in each) for each in given):
            return list(given)
    raise ApiError(
        400, f"{name} is a {type(given).__name__} that is no prompt.",
        "Give a text, a list of token ids, or a list of such.", param=name,
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """What is asked for each prompt."""

    model: str
    prompts: Prompts
    options: AnswerOptions
    n: int
    echo: bool
    logprobs: int | None
    form: Form | None
    silent: bool
    """Whether no token was asked for; the model makes one all the same, which nobody sees."""


async def completions(request: Request) -> Response:
    """Continue one or more prompts, at once or in events."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(CompletionRequest, await read_object(request, serving.settings))
    body.check()
    exchange.stream = bool(body.stream)
    asked = _asked(body, serving)
    if serving.settings.log_prompts:
        exchange.detail["prompt"] = body.prompt
    head = head_of("cmpl", asked.model, "text_completion")
    if body.stream:
        chunks = _chunks(serving, exchange, asked, head, body.streamed)
        return await events_of(chunks, serving, exchange).begin(request)
    return JsonResponse(await unless_left(request, _whole(serving, exchange, asked, head)))


def _asked(body: CompletionRequest, serving: Serving) -> _Asked:
    prompts = prompts_of("prompt", body.prompt, serving.settings.max_prompts)
    check_count(body.count, len(prompts), serving.settings.max_answers)
    options = body.options()
    options.setdefault("max_tokens", _MAX_TOKENS)
    silent = options["max_tokens"] == 0
    if silent and not body.echo:
        raise UsageError("max_tokens is 0, and echo is not set.", "Ask for at least one token, or for the prompt back.")
    if silent:
        options["max_tokens"] = 1
    if body.logprobs is not None:
        options["logprobs"] = body.logprobs
        if body.echo:
            options["prompt_logprobs"] = body.logprobs
    if any(isinstance(prompt, str) for prompt in prompts):
        options["raw"] = True
    name = serving.registry.name(body.model)
    return _Asked(name, prompts, options, body.count, bool(body.echo), body.logprobs, body.form, silent)


class _Choice:
    """What one choice has become, and what of it has not been sent."""

    def __init__(self, stream: AsyncStream, echoed: str, model: Model, asked: _Asked) -> None:
        self._stream, self._model, self._asked = stream, model, asked
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._echoed = False
        self.reason: str | None = None
        self._echo = echoed
        self._begin_part()

    def _begin_part(self) -> None:
        self.text: list[str] = []
        self.tokens: list[str] = []
        self.logprobs: list[float | None] = []
        self.top: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def take(self, each: Piece) -> None:
        """Take an event; before the first one, the prompt if it was asked for."""
        if self._asked.echo and not self._echoed:
            self._echoed = True
            self.text.append(self._echo)
            if self._asked.logprobs is not None:
                self._tell_prompt()
        if isinstance(each, TextDelta) and not self._asked.silent:
            self.text.append(each.text)
            for token in each.tokens:
                self._tell(token)
        elif isinstance(each, Finish):
            self.reason = "length" if self._asked.silent else each.reason

    def _tell_prompt(self) -> None:
        first, *scores = prompt_logprobs(self._model, self._stream)
        self._tell(first, known=False)
        for token in scores:
            self._tell(token)

    def _tell(self, token: TokenLogprob, *, known: bool = True) -> None:
        self.offsets.append(self._offset)
        self.tokens.append(token.token.text)
        self.logprobs.append(token.logprob if known else None)
        self.top.append(_top(token) if known and self._asked.logprobs else None)
        self._offset += len(self._decoder.decode(token.token.bytes))

    def part(self, number: int) -> dict[str, Any]:
        """What has come since the last part, as JSON."""
        told = None
        if self._asked.logprobs is not None:
            told = {
                "tokens": self.tokens, "token_logprobs": self.logprobs, "text_offset": self.offsets,
                "top_logprobs": self.top if self._asked.logprobs else None,
            }  # fmt: skip
        made = {"index": number, "text": "".join(self.text), "logprobs": told, "finish_reason": self.reason}
        self._begin_part()
        return made


def _top(token: TokenLogprob) -> dict[str, float]:
    """The most likely tokens by their text, with the token itself. Of equal texts, the most likely counts."""
    found: dict[str, float] = {}
    for other, logprob in (*token.top, (token.token, token.logprob)):
        found.setdefault(other.text, logprob)
    return found


async def _choices(
    serving: Serving, exchange: Exchange, asked: _Asked
) -> AsyncGenerator[tuple[int, _Choice] | Progress | Usage, None]:
    """Each choice as it grows, with its number, and what all of them have so far; at the end what they used."""
    async with serving.turn(exchange, asked.model) as model:
        options = with_limits(asked.options, exchange, model.plan.context)
        streams, texts = await asyncio.to_thread(_begun, model, asked, options)
        choices = [
            _Choice(stream, text, model, asked) for few, text in zip(streams, texts, strict=True) for stream in few
        ]
        readers = [PlainReader(choice) for choice in range(asked.n)]
        told = asked.logprobs is not None
        sources = [follow(model, few, readers, logprobs=told, end_told=True) for few in streams]
        so_far, used = [Progress(0, 0)] * len(sources), list[Usage]()
        events = merged(sources)
        try:
            async for prompt, each in events:
                match each:
                    case Usage():
                        used.append(each)
                    case Progress():
                        so_far[prompt] = each
                        all_of_them = Progress(
                            sum(known.prompt_tokens for known in so_far),
                            sum(known.completion_tokens for known in so_far),
                        )
                        exchange.note(all_of_them)
                        yield all_of_them
                    case _:
                        exchange.note(each)
                        number = prompt * asked.n + each.choice
                        choices[number].take(each)
                        yield number, choices[number]
        finally:
            await events.aclose()
            for source in sources:
                await source.aclose()
        total = Usage(
            sum(each.prompt_tokens for each in used), sum(each.cached_tokens for each in used),
            0 if asked.silent else sum(each.completion_tokens for each in used),
        )  # fmt: skip
        exchange.note(total)
        yield total


def _begun(model: Model, asked: _Asked, options: AnswerOptions) -> tuple[list[list[AsyncStream]], list[str]]:
    """The streams of each prompt, and the prompts' texts if they are wanted."""
    if asked.form is not None:
        options["grammar"] = asked.form.grammar(model.grammar)
    streams = [model.astreams(prompt, asked.n, **options) for prompt in asked.prompts]
    texts = [_text(model, prompt) if asked.echo else "" for prompt in asked.prompts]
    return streams, texts


def _text(model: Model, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else model.decode(prompt)


def prompt_logprobs(model: Model, stream: AsyncStream) -> list[TokenLogprob]:
    """The tokens of a prompt that was scored; the first, which nothing goes before, with what JSON has for nothing."""
    first, *_ = stream.prompt_ids
    return [prompt_logprob(model.tokenizer, first, LEAST, ())] + [
        prompt_logprob(model.tokenizer, score.id, score.logprob, score.top) for score in stream.prompt_scores
    ]


async def _chunks(
    serving: Serving, exchange: Exchange, asked: _Asked, head: dict[str, Any], options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    used = options.so_far(Progress(0, 0))
    choices = _choices(serving, exchange, asked)
    async with aclosing(choices):
        async for each in choices:
            match each:
                case Progress():
                    used = options.so_far(each)
                case Usage():
                    if options.include_usage:
                        yield event(dumps({**head, "choices": [], "usage": usage(each)}))
                case number, choice:
                    yield event(dumps({**head, "choices": [choice.part(number)], **used}))
    yield event("[DONE]")


async def _whole(serving: Serving, exchange: Exchange, asked: _Asked, head: dict[str, Any]) -> dict[str, Any]:
    grown: dict[int, _Choice] = {}
    used: dict[str, Any] = {}
    choices = _choices(serving, exchange, asked)
    async with aclosing(choices):
        async for each in choices:
            if isinstance(each, Usage):
                used = usage(each)
            elif not isinstance(each, Progress):
                grown[each[0]] = each[1]
    found = [grown[number].part(number) for number in sorted(grown)]
    return {**head, "choices": found, "usage": used}
