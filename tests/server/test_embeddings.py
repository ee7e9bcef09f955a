"""The real OpenAI client gets the vectors of the library."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from halfbyte.model import Model

from .running import Running, eventually, pocket, running, source

TEXTS = ["How do I list files?", "ls -la", "tar xzf archive.tar.gz " * 9]
PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pocket() as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert answer.object == "list"
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    assert {each.object for each in answer.data} == {"embedding"}
    return np.array([each.embedding for each in answer.data])


def test_vectors_are_those_of_the_library(client: openai.OpenAI, model: Model) -> None:
    answer = client.embeddings.create(model="pocket", input=TEXTS, user="me")
    assert answer.model == "pocket"
    assert np.abs(vectors(answer) - model.embed(TEXTS)).max() < 1e-5
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(model.encode(t, raw=True)) for t in TEXTS)


def test_numbers_and_base64_are_the_same_vectors(server: Running, client: openai.OpenAI) -> None:
    """The client asks for base64 unless told otherwise, and decodes it."""
    plain = client.embeddings.create(model="pocket", input=TEXTS, encoding_format="float")
    assert np.array_equal(vectors(client.embeddings.create(model="pocket", input=TEXTS)), vectors(plain))
    raw = server.post(PATH, {"input": TEXTS[0], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(raw), "<f4"), np.float32(plain.data[0].embedding))
    assert isinstance(server.post(PATH, {"input": TEXTS[0]}).json()["data"][0]["embedding"][0], float)


def test_a_text_and_token_ids_are_inputs_too(client: openai.OpenAI, model: Model) -> None:
    ids, expected = [model.encode(text, raw=True) for text in TEXTS], model.embed(TEXTS)
    for given, count in ((TEXTS[0], 1), (ids[0], 1), (ids, 3)):
        found = vectors(client.embeddings.create(model="pocket", input=given))
        assert found.shape == (count, 512)
        assert np.abs(found - expected[:count]).max() < 1e-5


def test_dimensions_pooling_and_length_are_as_asked(client: openai.OpenAI, model: Model) -> None:
    few = vectors(client.embeddings.create(model="pocket", input=TEXTS, dimensions=64))
    assert np.abs(few - model.embed(TEXTS, dimensions=64)).max() < 1e-5
    assert np.allclose(np.linalg.norm(few, axis=1), 1)
    extra = {"pooling": "last", "normalize": False}
    last = vectors(client.embeddings.create(model="pocket", input=TEXTS, extra_body=extra))
    assert np.abs(last - model.embed(TEXTS, pooling="last", normalize=False)).max() < 1e-4


def test_vectors_come_beside_answers(server: Running, model: Model) -> None:
    async def together() -> tuple[list[str], list[np.ndarray]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def answer(text: str) -> str:
                made = await client.completions.create(model="pocket", prompt=text, max_tokens=30, temperature=0)
                return made.choices[0].text

            async def embed() -> np.ndarray:
                return vectors(await client.embeddings.create(model="pocket", input=TEXTS))

            answers = asyncio.gather(*map(answer, TEXTS))
            return await answers, await asyncio.gather(*(embed() for _ in range(4)))

    answers, found = asyncio.run(together())
    assert answers == [model.generate(text, raw=True, max_tokens=30).text for text in TEXTS]
    assert all(np.abs(each - model.embed(TEXTS)).max() < 1e-5 for each in found)


def test_the_log_and_the_metrics_count_tokens_and_hold_no_text(server: Running, model: Model) -> None:
    def counted() -> float:
        text = server.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith('halfbyte_prompt_tokens_total{model="pocket"}')]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    before, tokens = counted(), len(model.encode(TEXTS[0], raw=True))
    response = server.post(PATH, {"input": TEXTS[0]})
    line = server.request_line(response.headers["x-request-id"])
    assert (line["route"], line["status"], line["model"], line["prompt_tokens"]) == (PATH, 200, "pocket", tokens)
    assert line["completion_tokens"] == 0
    assert TEXTS[0] not in str(line)
    assert counted() == before + tokens


def test_a_client_that_leaves_is_not_computed_for() -> None:
    """And a request that takes too long gets a sentence."""
    made: list[Model] = []

    def make() -> Model:
        made.append(pocket(2, step_s=0.05, batch_tokens=16))
        return made[-1]

    with running([source(make=make)], timeout_s=2.0) as server:
        with pytest.raises(openai.APITimeoutError), server.client() as client:
            client.with_options(timeout=1.0).embeddings.create(model="pocket", input=TEXTS * 60)
        left = time.monotonic()
        eventually(lambda: made[-1].engine.idle)
        assert time.monotonic() - left < 5, "it would have taken twenty seconds"
        eventually(lambda: server.lines("request"))
        assert server.lines("request")[0]["status"] == 499
        assert "queue_ms" in server.lines("request")[0], "its turn had come"
        late = server.post(PATH, {"input": TEXTS * 60})
        assert late.status_code == 503
        assert late.json()["error"]["message"] == "The request took too long. Ask for less."
        assert late.json()["error"]["code"] == "timeout"
        eventually(lambda: made[-1].engine.idle)
