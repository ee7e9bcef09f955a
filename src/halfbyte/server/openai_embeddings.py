"""`POST /v1/embeddings`: texts or token ids as vectors."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from halfbyte.embedding import EmbeddingOptions, Float32
from halfbyte.model import Model
from halfbyte.runtime.pooling import Pooling
from halfbyte.server.conversation import Usage
from halfbyte.server.exchange import Exchange, exchange_of
from halfbyte.server.json import JsonResponse
from halfbyte.server.limits import read_object, unless_left
from halfbyte.server.openai_completions import Prompts, prompts_of
from halfbyte.server.openai_options import parsed
from halfbyte.server.serving import Serving, serving_of


class EmbeddingsRequest(BaseModel):
    """The body of a request; `pooling` and `normalize` are beside OpenAI's."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None

    @property
    def options(self) -> EmbeddingOptions:
        """As options of `Model.aembed`."""
        options = EmbeddingOptions(dimensions=self.dimensions)
        if self.pooling is not None:
            options["pooling"] = self.pooling
        if self.normalize is not None:
            options["normalize"] = self.normalize
        return options


async def embeddings(request: Request) -> Response:
    """The vector of each text."""
    serving, exchange = serving_of(request), exchange_of(request)
    body = parsed(EmbeddingsRequest, await read_object(request, serving.settings))
    texts = prompts_of("input", body.input, serving.settings.max_prompts)
    if serving.settings.log_prompts:
        exchange.detail["input"] = body.input
    return await unless_left(request, _answer(serving, exchange, body, texts))


async def _answer(serving: Serving, exchange: Exchange, body: EmbeddingsRequest, texts: Prompts) -> Response:
    async with serving.turn(exchange, body.model) as model, asyncio.timeout(exchange.left_s):
        ids = await asyncio.to_thread(_token_ids, model, texts)
        vectors = await model.aembed(ids, **body.options)
    tokens = sum(map(len, ids))
    exchange.note(Usage(tokens, 0, 0))
    return await asyncio.to_thread(_response, exchange.model, vectors, tokens, body.encoding_format or "float")


def _token_ids(model: Model, texts: Prompts) -> list[list[int]]:
    return [model.encode(text, raw=isinstance(text, str)) for text in texts]


def _response(model: str, vectors: Float32, tokens: int, encoding: str) -> Response:
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, encoding)} for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JsonResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _written(vector: Float32, encoding: str) -> str | list[float]:
    """A vector as numbers, or as the base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
