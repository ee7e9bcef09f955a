"""LlamaIndex's clients for OpenAI and for what is like it get answers, streams, calls of tools and objects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

from halfbyte.model import Model

from .running import PATIENCE_S, Running, pocket, running, source

QUESTION = "How do I list the files of a directory?"
ASKED = [ChatMessage(role=MessageRole.USER, content=QUESTION)]
TEXT = "How do I list all files"


class Place(BaseModel, extra="forbid"):
    """A folder."""

    path: str = Field(max_length=12)


def list_files(path: str) -> str:
    """List the files of a folder."""
    return f"in {path}"


TOOL = FunctionTool.from_defaults(list_files, fn_schema=Place)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pocket() as found:
        yield found


def options(server: Running, **changes: Any) -> dict[str, Any]:
    return {
        "model": "pocket", "api_base": f"{server.url}/v1", "api_key": "none", "temperature": 0, "max_retries": 0,
        "timeout": PATIENCE_S, **changes,
    }  # fmt: skip


def chatting(server: Running, **changes: Any) -> OpenAILike:
    changes = {"context_window": 2048, "is_chat_model": True, "is_function_calling_model": True, **changes}
    return OpenAILike(**options(server, **changes))


def test_an_answer_is_that_of_the_library(server: Running, model: Model) -> None:
    expected = model.chat([{"role": "user", "content": QUESTION}])
    answer = chatting(server).chat(ASKED)
    assert answer.message.content == expected.text
    assert answer.message.role == MessageRole.ASSISTANT
    assert answer.raw is not None
    assert answer.raw.usage.completion_tokens == expected.new_tokens
    assert chatting(server).complete(QUESTION).text == expected.text


def test_a_stream_adds_up_to_the_answer(server: Running) -> None:
    whole = chatting(server).chat(ASKED)
    chunks = list(chatting(server).stream_chat(ASKED))
    assert len(chunks) > 1
    assert "".join(chunk.delta or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].message.content == whole.message.content


def test_coroutines_get_the_same(server: Running) -> None:
    async def both() -> list[str]:
        async with httpx.AsyncClient() as http:
            llm = chatting(server, async_http_client=http)
            return [each.message.content or "" for each in await asyncio.gather(llm.achat(ASKED), llm.achat(ASKED))]

    assert asyncio.run(both()) == [chatting(server).chat(ASKED).message.content] * 2


def test_a_text_is_continued(server: Running, model: Model) -> None:
    expected = model.generate(TEXT, raw=True, max_tokens=8)
    llm = OpenAILike(**options(server, is_chat_model=False, max_tokens=8, context_window=2048))
    assert llm.complete(TEXT).text == expected.text
    assert "".join(chunk.delta or "" for chunk in llm.stream_complete(TEXT)) == expected.text


def test_a_tool_is_called(server: Running) -> None:
    llm = chatting(server, max_tokens=400, strict=True)
    answer = llm.chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "list_files"
    path = Place.model_validate(call.tool_kwargs).path
    assert str(llm.predict_and_call([TOOL], user_msg=QUESTION, tool_required=True)) == f"in {path}"
    streamed = list(llm.stream_chat_with_tools([TOOL], user_msg=QUESTION, tool_required=True))
    (found,) = llm.get_tool_calls_from_response(streamed[-1])
    assert found.tool_kwargs == call.tool_kwargs


@pytest.mark.parametrize("by", ["tool", "schema"])
def test_an_answer_is_an_object_of_a_class(server: Running, by: str) -> None:
    changes: dict[str, Any] = {"is_function_calling_model": by == "tool", "should_use_structured_outputs": by != "tool"}
    found = chatting(server, max_tokens=400, **changes).as_structured_llm(Place).chat(ASKED)
    assert isinstance(found.raw, Place)


def test_the_client_for_openai_itself_needs_a_name_that_it_knows(model: Model) -> None:
    with running([source("gpt-4o-mini")]) as server:
        llm = OpenAI(**options(server, model="gpt-4o-mini"))
        assert llm.chat(ASKED).message.content == model.chat([{"role": "user", "content": QUESTION}]).text
        assert "".join(chunk.delta or "" for chunk in llm.stream_complete(QUESTION)) == llm.complete(QUESTION).text
