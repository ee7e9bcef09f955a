"""Routes of Halfbyte's own: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/health`, `/slots`, `/metrics`."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from halfbyte.errors import UsageError
from halfbyte.server.exchange import exchange_of
from halfbyte.server.json import JsonResponse
from halfbyte.server.limits import read_object
from halfbyte.server.openai_chat import message
from halfbyte.server.openai_options import parsed
from halfbyte.server.serving import serving_of
from halfbyte.server.tokens import spelled


class TokenizeRequest(BaseModel):
    """A text or a conversation to be cut into tokens; `add_special_tokens` is vLLM's name for `add_special`."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special: bool = False
    add_special_tokens: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(BaseModel):
    """Tokens to be joined to a text."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    """Token ids of a text, or of a conversation as the chat template writes it."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(TokenizeRequest, await read_object(request, serving.settings))
    text = body.content if body.content is not None else body.prompt
    if (text is None) == (body.messages is None):
        raise UsageError("there must be either content or messages.", 'Send {"content": "some text"}.')
    exchange.model = serving.registry.name(body.model)
    async with serving.registry.use(exchange.model) as model:
        if body.messages is not None:
            chat = [message(place, each) for place, each in enumerate(body.messages)]
            ids = await asyncio.to_thread(model.encode, chat)
        else:
            ids = await asyncio.to_thread(
                model.tokenizer.encode,
                text or "",
                add_special_tokens=body.add_special if body.add_special_tokens is None else body.add_special_tokens,
                parse_special=body.parse_special,
            )
        tokens: list[Any] = list(ids)
        if body.with_pieces:
            tokens = [_piece(spelled(model.tokenizer, token).bytes, token) for token in ids]
        return JsonResponse({"tokens": tokens, "count": len(ids), "max_model_len": model.plan.context})


async def detokenize(request: Request) -> Response:
    """The text of token ids, without special tokens."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(DetokenizeRequest, await read_object(request, serving.settings))
    exchange.model = serving.registry.name(body.model)
    async with serving.registry.use(exchange.model) as model:
        text = await asyncio.to_thread(model.decode, body.tokens)
        return JsonResponse({"content": text, "prompt": text})


async def tokenizer_info(request: Request) -> Response:
    """The special tokens and the chat template of a model, as vLLM tells them; evaluation harnesses look there.

    They name no model, and would take the tokenizer of one for that of another where there are several.
    """
    serving, exchange = serving_of(request), exchange_of(request)
    wanted = request.query_params.get("model")
    if wanted is None and len(serving.registry.entries) > 1:
        raise UsageError("there are several models, and each has its tokenizer.", "Ask for ?model=NAME.")
    exchange.model = serving.registry.name(wanted)
    async with serving.registry.use(exchange.model) as model:
        tokenizer = model.tokenizer
        return JsonResponse(
            {
                "model": exchange.model, "bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token,
                "chat_template": tokenizer.chat_template(), "max_model_len": model.plan.context,
            }
        )  # fmt: skip


async def health(request: Request) -> Response:
    """That the server answers."""
    return JsonResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """Counts and times, for Prometheus."""
    text = serving_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4")


async def slots(request: Request) -> Response:
    """The places of each loaded model, with the requests in them as far as there are places."""
    serving = serving_of(request)
    found = []
    for entry in serving.registry.entries:
        if entry.loaded is None:
            continue
        name, plan = entry.source.name, entry.loaded.model.plan
        busy = [
            each for each in serving.active if serving.registry.base(each.model) == name and each.turn_s is not None
        ]
        for place in range(plan.sequences):
            about = busy[place] if place < len(busy) else None
            found.append(
                {
                    "id": place, "model": name, "n_ctx": plan.context, "is_processing": about is not None,
                    "request": about and about.id, "age_s": about and round(about.age_s, 3),
                    "n_decoded": about and about.tokens,
                }
            )  # fmt: skip
    return JsonResponse(found)


def _piece(spelling: bytes, token: int) -> dict[str, Any]:
    """A token with its text, or with its bytes where they are no whole characters; as llama.cpp writes it."""
    try:
        return {"id": token, "piece": spelling.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(spelling)}
