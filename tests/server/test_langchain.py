"""LangChain's client for OpenAI gets answers, streams, calls of tools and objects from the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr

from halfbyte.model import Model

from .running import PATIENCE_S, Running, pocket

QUESTION = "How do I list the files of a directory?"
TEXT = "How do I list all files"


class Place(BaseModel, extra="forbid"):
    """A folder, and how deep to look into it."""

    path: str = Field(max_length=12)
    depth: int = Field(ge=0, le=9)


@tool(args_schema=Place)
def list_files(path: str, depth: int) -> str:
    """List the files of a folder."""
    return f"{path}/{depth}"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pocket() as found:
        yield found


@pytest.fixture
def options(server: Running) -> dict[str, Any]:
    return {
        "model": "pocket", "base_url": f"{server.url}/v1", "api_key": SecretStr("none"), "temperature": 0,
        "max_retries": 0, "timeout": PATIENCE_S,
    }  # fmt: skip


def test_an_answer_is_that_of_the_library_with_its_usage(options: dict[str, Any], model: Model) -> None:
    expected = model.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}])
    answer = ChatOpenAI(**options).invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert answer.content == expected.text
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == expected.prompt_tokens
    assert answer.usage_metadata["output_tokens"] == expected.new_tokens


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_a_stream_adds_up_to_the_answer_and_ends_with_its_usage(options: dict[str, Any], protocol: str) -> None:
    chat = ChatOpenAI(**options, stream_usage=True, use_responses_api=protocol == "responses")
    whole, chunks = chat.invoke(QUESTION), list(chat.stream(QUESTION))
    assert len(chunks) > 1
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    assert isinstance(joined, AIMessageChunk)
    assert joined.text == whole.text
    assert whole.usage_metadata is not None
    assert joined.usage_metadata is not None
    assert joined.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]
    assert joined.usage_metadata["input_token_details"]["cache_read"] == whole.usage_metadata["input_tokens"] - 1


def test_a_batch_has_the_answers_of_each_alone(options: dict[str, Any]) -> None:
    chat = ChatOpenAI(**options)
    questions = [QUESTION, "How do I make a folder?", "How do I copy a file?"]
    assert [each.text for each in chat.batch(questions)] == [chat.invoke(each).text for each in questions]


@pytest.mark.parametrize("choice", ["required", "list_files"])
def test_a_tool_is_called_and_its_result_answered(options: dict[str, Any], choice: str) -> None:
    chat = ChatOpenAI(**options, max_tokens=400)
    bound = chat.bind_tools([list_files], tool_choice=choice, strict=True, parallel_tool_calls=False)
    asked = HumanMessage(QUESTION)
    answer = bound.invoke([asked])
    assert isinstance(answer, AIMessage)
    assert answer.invalid_tool_calls == []
    (call,) = answer.tool_calls
    assert call["name"] == "list_files"
    place = Place.model_validate(call["args"])
    result = list_files.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content == f"{place.path}/{place.depth}"
    after = chat.bind_tools([list_files], tool_choice="none").invoke([asked, answer, result])
    assert after.text
    streamed = [chunk for chunk in bound.stream([asked]) if isinstance(chunk, AIMessageChunk)]
    joined = streamed[0]
    for chunk in streamed[1:]:
        joined += chunk
    assert [(each["name"], each["args"]) for each in joined.tool_calls] == [("list_files", call["args"])]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_is_an_object_of_a_class(options: dict[str, Any], method: Any) -> None:
    found = ChatOpenAI(**options, max_tokens=400).with_structured_output(Place, method=method).invoke(QUESTION)
    assert isinstance(found, Place)


def test_parameters_of_halfbyte_are_passed_in_the_body(options: dict[str, Any]) -> None:
    whole = ChatOpenAI(**options, max_tokens=30).invoke(QUESTION)
    longer = ChatOpenAI(**options, max_tokens=30, extra_body={"ignore_eos": True}).invoke(QUESTION)
    assert [each.response_metadata["finish_reason"] for each in (whole, longer)] == ["stop", "length"]
    assert longer.text.startswith(whole.text)


def test_log_probabilities_come_with_the_answer(options: dict[str, Any]) -> None:
    answer = ChatOpenAI(**options, max_tokens=3).bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    told = answer.response_metadata["logprobs"]["content"]
    assert "".join(each["token"] for each in told) == answer.text
    assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] for each in told)


def test_a_text_is_continued(options: dict[str, Any], model: Model) -> None:
    expected = model.generate(TEXT, raw=True, max_tokens=8)
    completing = OpenAI(**options, max_tokens=8)
    assert completing.invoke(TEXT) == expected.text
    assert "".join(completing.stream(TEXT)) == expected.text
    many = completing.generate([TEXT, "cat "])
    assert many.generations[0][0].text == expected.text
    assert many.llm_output is not None
    assert many.llm_output["token_usage"]["prompt_tokens"] == sum(
        len(model.encode(text, raw=True)) for text in (TEXT, "cat ")
    )


def test_texts_become_the_librarys_vectors(options: dict[str, Any], model: Model) -> None:
    """More of them than one request may have."""
    del options["temperature"]
    embedding = OpenAIEmbeddings(**options, check_embedding_ctx_length=False, chunk_size=256)
    texts = [f"cat file{i}" for i in range(260)]
    expected = model.embed(texts)
    assert np.abs(np.array(embedding.embed_documents(texts)) - expected).max() < 1e-5
    assert np.abs(np.array(embedding.embed_query(texts[0])) - expected[0]).max() < 1e-5
