"""The real OpenAI client gets from the server what the library gives."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from halfbyte.evaluation.scorer import log_probabilities
from halfbyte.model import Model

from .running import PATIENCE_S, Running, pocket

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How do I list the files of a directory?"}]
OTHERS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How do I make a folder?"}]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pocket() as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


def test_an_answer_is_that_of_the_library(client: openai.OpenAI, model: Model) -> None:
    answer = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_tokens=40)
    expected = model.chat([dict(each) for each in MESSAGES], max_tokens=40)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == expected.new_tokens
    assert answer.usage.total_tokens == expected.prompt_tokens + expected.new_tokens


def test_a_stream_joined_is_the_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="pocket", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(texts) > 1
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    used = chunks[-1].usage
    assert used is not None
    assert used.prompt_tokens_details is not None
    assert used.prompt_tokens_details.cached_tokens == used.prompt_tokens - 1


def test_a_stream_has_no_usage_unless_it_is_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="pocket", messages=MESSAGES, stream=True, max_tokens=3))
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize("choices", [1, 2])
def test_each_event_tells_the_usage_so_far_if_asked(client: openai.OpenAI, choices: int) -> None:
    asked: dict[str, Any] = {
        "model": "pocket", "stream": True, "max_tokens": 30, "n": choices, "temperature": 1.0,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    for chunks in (
        list(client.chat.completions.create(**asked, messages=MESSAGES)),
        list(client.completions.create(**asked, prompt="ls")),
    ):
        told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
        assert len(told) == len(chunks)
        assert told == sorted(told)
        assert told[0] > 0
        assert told[-1] == 30 * choices
        assert len({chunk.usage.prompt_tokens for chunk in chunks if chunk.usage is not None}) == 1


def test_several_answers_have_the_seeds_of_each_alone(client: openai.OpenAI) -> None:
    prompt: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]
    many = client.chat.completions.create(model="pocket", messages=prompt, n=3, seed=5, temperature=1.5, max_tokens=12)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    alone = [
        client.chat.completions.create(model="pocket", messages=prompt, seed=5 + i, temperature=1.5, max_tokens=12)
        for i in range(3)
    ]
    assert [c.message.content for c in many.choices] == [a.choices[0].message.content for a in alone]
    assert len({c.message.content for c in many.choices}) > 1


def test_several_streamed_answers_are_the_same_ones(client: openai.OpenAI) -> None:
    many = client.chat.completions.create(model="pocket", messages=OTHERS, n=2, seed=3, temperature=1.5, max_tokens=12)
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(
        model="pocket", messages=OTHERS, n=2, seed=3, temperature=1.5, max_tokens=12, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [texts[choice.index] for choice in many.choices] == [choice.message.content for choice in many.choices]


def test_an_answer_ends_before_a_stop_string_and_at_its_length(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0)
    text = whole.choices[0].message.content or ""
    stopped = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, stop=[text[5:9], "§"])
    assert stopped.choices[0].message.content == text[:5]
    assert stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_completion_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert text.startswith(short.choices[0].message.content or "?")


def test_log_probabilities_are_the_librarys_and_the_top_one_equals_the_token(
    client: openai.OpenAI, model: Model
) -> None:
    answer = client.chat.completions.create(
        model="pocket", messages=MESSAGES, temperature=0, max_tokens=40, logprobs=True, top_logprobs=4
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    expected = list(model.stream([dict(each) for each in MESSAGES], max_tokens=40, logprobs=4))[:-1]
    assert len(told.content) == len(expected)
    for shown, token in zip(told.content, expected, strict=True):
        assert shown.logprob == pytest.approx(token.logprob, abs=1e-4)
        assert shown.logprob == max(top.logprob for top in shown.top_logprobs)
        assert shown.token == shown.top_logprobs[0].token
        assert bytes(shown.bytes or ()).decode() == shown.token
    assert "".join(shown.token for shown in told.content) == answer.choices[0].message.content


def test_logit_bias_and_other_samplers_reach_the_model(client: openai.OpenAI, server: Running) -> None:
    tokens = server.post("/tokenize", {"content": "Use"}).json()["tokens"]
    first = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_tokens=1)
    assert first.choices[0].message.content == "Use"
    other = client.chat.completions.create(
        model="pocket", messages=MESSAGES, temperature=0, max_tokens=1, logit_bias={str(tokens[0]): -100}
    )
    assert other.choices[0].message.content != "Use"
    sampled = client.chat.completions.create(
        model="pocket", messages=MESSAGES, temperature=2, max_tokens=20, extra_body={"top_k": 1, "min_p": 0.1}
    )
    greedy = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_tokens=20)
    assert sampled.choices[0].message.content == greedy.choices[0].message.content


def test_messages_of_parts_and_of_developers_are_read(client: openai.OpenAI) -> None:
    parts: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": [{"type": "text", "text": "How do I list the files of a directory?"}]}
    ]
    plain = client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_tokens=20)
    asked = client.chat.completions.create(model="pocket", messages=parts, temperature=0, max_tokens=20)
    assert asked.choices[0].message.content == plain.choices[0].message.content
    said = [
        client.chat.completions.create(
            model="pocket", messages=[{"role": role, "content": "Be brief."}, *MESSAGES], temperature=0, max_tokens=20
        )  # type: ignore[list-item]
        for role in ("system", "developer")
    ]
    assert said[0].choices[0].message.content == said[1].choices[0].message.content


def test_models_are_listed_in_both_forms(client: openai.OpenAI, server: Running) -> None:
    assert [each.id for each in client.models.list()] == ["pocket"]
    assert client.models.retrieve("pocket").owned_by == "halfbyte"
    with server.http() as http:
        listed = http.get("/v1/models").json()
    assert [each["slug"] for each in listed["models"]] == ["pocket"]
    assert listed["data"][0]["loaded"]["device"] == "cpu"
    with pytest.raises(openai.NotFoundError, match="There are pocket"):
        client.models.retrieve("nothing/there")


def test_many_clients_at_once_get_the_answers_of_each_alone(server: Running) -> None:
    questions = [f"How do I count the lines of file{i}.txt?" for i in range(12)]

    async def asked(client: openai.AsyncOpenAI, question: str) -> str:
        stream = await client.chat.completions.create(
            model="pocket", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_S) as client:
            return list(await asyncio.gather(*(asked(client, question) for question in questions)))

    together = asyncio.run(all_of_them())
    with server.client() as client:
        for question, text in zip(questions, together, strict=True):
            alone = client.chat.completions.create(
                model="pocket", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
            )
            assert text == alone.choices[0].message.content


def test_completions_continue_text_and_ids_alike(client: openai.OpenAI, model: Model) -> None:
    text = "How do I list all files"
    ids = model.encode(text, raw=True)
    expected = model.generate(text, raw=True, max_tokens=8)
    for prompt in (text, ids, [text], [ids]):
        answer = client.completions.create(model="pocket", prompt=prompt, temperature=0, max_tokens=8)
        assert answer.choices[0].text == expected.text
    many = client.completions.create(model="pocket", prompt=[text, "cat "], n=2, temperature=0, max_tokens=8)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in many.choices[:2]] == [expected.text] * 2
    assert many.usage is not None
    assert many.usage.prompt_tokens == len(ids) + len(model.encode("cat ", raw=True))


def test_a_streamed_completion_joined_is_the_completion(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="pocket", prompt="tar -", temperature=0, max_tokens=9, echo=True)
    chunks = client.completions.create(
        model="pocket", prompt="tar -", temperature=0, max_tokens=9, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].text.startswith("tar -")


def test_a_prompt_alone_is_scored_as_evaluation_harnesses_ask(client: openai.OpenAI, model: Model) -> None:
    """As lm-eval's local-completions does: lists of ids, echo, one token that it drops, equality of floats."""
    prompts = [model.encode(text, raw=True) for text in ("How do I list all files in a directory?", "ls -la | wc -l")]
    answer = client.completions.create(
        model="pocket", prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    for ids, choice in zip(prompts, answer.choices, strict=True):
        told = choice.logprobs
        assert told is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert told.tokens is not None
        assert len(told.tokens) == len(ids) + 1
        logits = np.concatenate([chunk.copy() for chunk in model.engine.score(ids)])
        expected = log_probabilities(logits)
        assert told.token_logprobs[0] is None
        assert told.top_logprobs[0] is None
        for place in range(1, len(ids)):
            value, top = told.token_logprobs[place], told.top_logprobs[place]
            assert value == pytest.approx(expected[place - 1, ids[place]], abs=1e-3)
            greedy = value == max(top.values())
            assert greedy == (int(np.argmax(expected[place - 1])) == ids[place])
        assert told.text_offset == [len(model.decode(ids[:place])) for place in range(len(ids) + 1)]


def test_a_prompt_can_be_scored_without_an_answer(client: openai.OpenAI) -> None:
    scored = client.completions.create(model="pocket", prompt="ls -la", echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == "ls -la"
    told = scored.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert "".join(told.tokens) == "ls -la"
    assert told.top_logprobs is None
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_tokens_and_texts_are_exchanged(server: Running, model: Model) -> None:
    text = "grep -r 'ünï' /tmp 😀"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert server.post("/tokenize", {"content": text}).json()["tokens"] == ids
    assert server.post("/detokenize", {"tokens": ids}).json()["content"] == text
    chat = server.post("/tokenize", {"messages": MESSAGES}).json()
    assert chat["tokens"] == model.encode([dict(each) for each in MESSAGES])
    pieces = server.post("/tokenize", {"content": text, "with_pieces": True}).json()["tokens"]
    spelled = [each["piece"].encode() if isinstance(each["piece"], str) else bytes(each["piece"]) for each in pieces]
    assert b"".join(spelled).decode() == text


def test_a_tokenizer_is_told_of_as_vllm_does(server: Running, model: Model) -> None:
    told = server.get("/tokenizer_info").json()
    assert (told["bos_token"], told["eos_token"]) == (model.tokenizer.bos_token, "<|endoftext|>")
    assert told["chat_template"] == model.tokenizer.chat_template()
    ids = server.post("/tokenize", {"prompt": told["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert ids == [model.tokenizer.eos_token_id]


def test_figures_are_told_to_prometheus(server: Running, client: openai.OpenAI) -> None:
    def figure(name: str) -> float:
        with server.http() as http:
            lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    before = figure("halfbyte_generated_tokens_total"), figure("halfbyte_time_to_first_token_seconds_count")
    client.chat.completions.create(model="pocket", messages=MESSAGES, temperature=0, max_tokens=3)
    assert figure("halfbyte_generated_tokens_total") == before[0] + 3
    assert figure("halfbyte_time_to_first_token_seconds_count") == before[1] + 1
    assert figure("halfbyte_model_loaded") == 1


def test_the_log_tells_figures_and_no_words(server: Running) -> None:
    response = server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "My secret is Xylophone"}], "max_tokens": 4},
        headers={"x-request-id": "my-own.id_1"},
    )  # fmt: skip
    assert response.headers["x-request-id"] == "my-own.id_1"
    line = server.request_line("my-own.id_1")
    assert line["completion_tokens"] == 4
    assert line["model"] == "pocket"
    assert line["status"] == 200
    assert isinstance(line["first_token_ms"], float)
    assert math.isfinite(line["first_token_ms"])
    assert "Xylophone" not in str(server.log)


@pytest.mark.parametrize("given", ["bad id", "x" * 65, "ü", 'a"b'])
def test_an_id_that_is_not_harmless_is_replaced(server: Running, given: str) -> None:
    with server.http() as http:
        found = http.send(httpx.Request("GET", f"{server.url}/health", headers={"x-request-id": given.encode()}))
    assert found.headers["x-request-id"].startswith("req_")
