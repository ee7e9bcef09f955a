"""`/v1/messages`: what Anthropic's own client gets, and how requests and events are translated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message as ClientMessage
from anthropic.types import MessageParam, TextBlock, ThinkingBlock, ToolUseBlock

from halfbyte.errors import UsageError
from halfbyte.server.anthropic import HARMLESS, Message, MessagesRequest
from halfbyte.server.conversation import (
    ChatCall,
    Event,
    Finish,
    Named,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)
from halfbyte.server.openai_options import parsed
from halfbyte.text.forms import JsonSchema

from .running import PATIENCE_S, Running, losing, pocket, running, source

QUESTION = "How do I list the files of a directory?"
MESSAGES: list[MessageParam] = [{"role": "user", "content": QUESTION}]
PATH = "/v1/messages"
LONG: list[MessageParam] = [{"role": "user", "content": "word " * 5000}]
TOOL = {"name": "ls", "description": "Lists.", "input_schema": {"type": "object"}, "cache_control": {"type": "x"}}


def client_of(server: Running, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with client_of(server) as found:
        yield found


def greedy(client: anthropic.Anthropic, messages: list[MessageParam] = MESSAGES, **options: Any) -> ClientMessage:
    options = {"max_tokens": 40, "extra_body": {"temperature": 0}, **options}
    found = client.messages.create(model="pocket", messages=messages, **options)
    assert isinstance(found, ClientMessage)
    return found


def text_of(message: ClientMessage) -> str:
    assert [block.type for block in message.content] == ["text"]
    assert isinstance(message.content[0], TextBlock)
    return message.content[0].text


def test_an_answer_is_that_of_the_library(client: anthropic.Anthropic) -> None:
    answer = greedy(client)
    with pocket() as model:
        expected = model.chat([{"role": "user", "content": QUESTION}], max_tokens=40)
    assert text_of(answer) == expected.text
    assert (answer.role, answer.model, answer.stop_reason) == ("assistant", "pocket", "end_turn")
    used = answer.usage
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == expected.prompt_tokens
    assert used.output_tokens == expected.new_tokens


def test_a_stream_is_the_answer(client: anthropic.Anthropic) -> None:
    whole = greedy(client)
    with client.messages.stream(
        model="pocket", messages=MESSAGES, max_tokens=40, extra_body={"temperature": 0}
    ) as stream:
        pieces = list(stream.text_stream)
        last = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(last) == text_of(whole)
    assert last.stop_reason == "end_turn"
    assert last.usage.cache_read_input_tokens is not None
    assert last.usage.input_tokens == 1
    assert last.usage.output_tokens == whole.usage.output_tokens


def test_an_answer_says_what_ended_it(client: anthropic.Anthropic) -> None:
    text = text_of(greedy(client))
    stopped = greedy(client, stop_sequences=["§", text[5:9]])
    assert text_of(stopped) == text[:5]
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[5:9])
    short = greedy(client, max_tokens=2)
    assert (short.stop_reason, short.stop_sequence) == ("max_tokens", None)


def test_tokens_are_counted_as_an_answer_counts_them(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="pocket", messages=MESSAGES, system="Be brief.")
    used = greedy(client, system="Be brief.").usage
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    assert counted.input_tokens > client.messages.count_tokens(model="pocket", messages=MESSAGES).input_tokens


def test_tools_are_called_and_counted(client: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "list_files", "input_schema": {
        "type": "object", "properties": {"depth": {"type": "integer", "maximum": 9}}, "required": ["depth"],
        "additionalProperties": False,
    }}]  # fmt: skip
    choice: Any = {"type": "tool", "name": "list_files"}
    answer = greedy(client, tools=tools, tool_choice=choice, max_tokens=100)
    assert answer.stop_reason == "tool_use"
    assert [(block.type, getattr(block, "name", "")) for block in answer.content] == [("tool_use", "list_files")]
    assert isinstance(answer.content[0].input["depth"], int)  # type: ignore[union-attr]
    counted = client.messages.count_tokens(model="pocket", messages=MESSAGES, tools=tools, tool_choice=choice)
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


def test_a_header_that_changes_with_every_request_does_not_cost_the_cache(client: anthropic.Anthropic) -> None:
    def asked(number: int) -> ClientMessage:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={number:05};"}
        rules = {"type": "text", "text": "Answer with one command. " * 4, "cache_control": {"type": "ephemeral"}}
        return greedy(client, system=[header, rules], extra_query={"beta": "true"})

    first, again = asked(1), asked(22)
    assert text_of(first) == text_of(again)
    assert (again.usage.cache_read_input_tokens or 0) >= 32


def test_the_client_knows_our_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="There are pocket"):
        client.messages.create(model="claude", messages=MESSAGES, max_tokens=4)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .*context holds"):
        client.messages.create(model="pocket", messages=LONG, max_tokens=4)
    with (
        pytest.raises(anthropic.BadRequestError, match="prompt is too long"),
        client.messages.stream(model="pocket", messages=LONG, max_tokens=4),
    ):
        pass


def test_the_key_is_asked_for() -> None:
    with running(api_key="sesame") as locked:
        with client_of(locked, "wrong") as stranger, pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(model="pocket", messages=MESSAGES, max_tokens=1)
        with client_of(locked, "sesame") as friend:
            assert friend.messages.create(model="pocket", messages=MESSAGES, max_tokens=1).usage.output_tokens == 1
        bearer = anthropic.Anthropic(base_url=locked.url, auth_token="sesame", max_retries=0, timeout=PATIENCE_S)
        with bearer:
            assert bearer.messages.count_tokens(model="pocket", messages=MESSAGES).input_tokens > 5


def test_silence_is_filled_with_pings() -> None:
    def slow() -> Any:
        return pocket(step_s=0.3)

    with running([source(make=slow)], heartbeat_s=0.05) as server:
        body = {"messages": MESSAGES, "max_tokens": 2, "stream": True}
        response = server.post(PATH, body)
        lines = response.text.split("\n\n")
        assert lines.count('event: ping\ndata: {"type":"ping"}') >= 2
        with client_of(server) as client, client.messages.stream(
            model="pocket", messages=MESSAGES, max_tokens=2
        ) as stream:  # fmt: skip
            assert stream.get_final_message().usage.output_tokens == 2


def test_a_device_lost_on_the_way_ends_the_stream_with_an_error() -> None:
    with losing() as (server, lose), client_of(server) as client:
        stream = client.messages.create(
            model="pocket", messages=MESSAGES, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
        )
        assert next(stream).type == "message_start"
        lose()
        with pytest.raises(anthropic.APIStatusError, match=r"overloaded_error.*The GPU was lost"):
            list(stream)


def said(response: httpx.Response) -> str:
    """The message of an error, which is a sentence in Anthropic's form."""
    found = response.json()
    assert set(found) == {"type", "error", "request_id"}
    assert found["type"] == "error"
    assert found["request_id"] == response.headers["x-request-id"]
    assert set(found["error"]) == {"type", "message"}
    assert found["error"]["message"].rstrip("”'}").endswith((".", "?", "…", ")"))
    return str(found["error"]["message"])


def user(*blocks: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages is missing"),
        ({"messages": MESSAGES, "max_tokens": None}, "max_tokens is missing"),
        ({"messages": MESSAGES, "max_tokens": 0}, "max_tokens must be"),
        ({"messages": []}, "prompt is empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0 has the role 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages.0 has no content"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "Use"}]}, "The last message is the assistant's"),
        (user({"type": "image", "source": {}}), "messages.0.content.0 is a block of type 'image'"),
        (user({"type": "document", "source": {}}), "'document'"),
        (user({"type": "text"}), "without a text"),
        (user("text"), "messages.0.content.0 is no block"),
        (user({"type": "tool_use", "id": "a", "name": "b", "input": {}}), "'tool_use'"),
        (user({"type": "tool_result", "content": "x"}), "no tool_use_id"),
        (user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}), "content.0.content.0"),
        ({"messages": MESSAGES, "system": [{"type": "image"}]}, "system.0"),
        ({"messages": MESSAGES, "tools": [{"name": "a"}]}, "tools.0 has no input_schema"),
        ({"messages": MESSAGES, "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"messages": MESSAGES, "stop_sequences": ["a"] * 65}, "stop_sequences has 65"),
        ({"messages": MESSAGES, "output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"messages": MESSAGES, "n": 2}, "'n'"),
        ({"messages": MESSAGES, "stop": ["a"]}, "Did you mean stop_sequences"),
        ({"messages": MESSAGES, "mcp_servers": [{}]}, "'mcp_servers'"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_anthropics_form(
    server: Running, body: dict[str, Any], words: str
) -> None:
    response = server.post(PATH, {"max_tokens": 2, **body})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert words in said(response)


def test_what_is_no_request_is_refused_in_anthropics_form(server: Running) -> None:
    with server.http() as http:
        assert "not JSON" in said(http.post(PATH, content=b"{", headers={"content-type": "application/json"}))
        assert "POST" in said(http.get(f"{PATH}/count_tokens"))
        assert "nothing at" in said(http.post(f"{PATH}/batches", json={}))
        assert http.post("/v1/messagesx", json={}).json()["error"]["code"] is None


def test_harmless_parameters_are_taken(server: Running) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    assert server.post(PATH, {**body, **{name: {} for name in HARMLESS}}).status_code == 200


def call_of(**body: Any) -> ChatCall:
    return parsed(MessagesRequest, {"messages": MESSAGES, **body}, HARMLESS).call("pocket")


def test_a_conversation_with_tools_becomes_messages_for_templates() -> None:
    thought = {"type": "thinking", "thinking": "I look.", "signature": "s"}
    call = {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "/"}}
    other = {"type": "tool_use", "id": "t2", "name": "pwd", "input": {}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "bin"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "gone", "is_error": True},
        {"type": "text", "text": "And now?"},
    ]
    given = [
        *MESSAGES,
        {"role": "user", "content": [{"type": "text", "text": "Please."}]},
        {"role": "system", "content": "There are agents."},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "So:"}, call, other]},
        {"role": "user", "content": results},
    ]
    found = call_of(messages=given, system="Be brief.").messages
    assert [dict(each) for each in found] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"{QUESTION}\n\nPlease.\n\nThere are agents."},
        {
            "role": "assistant", "content": "So:", "reasoning_content": "I look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "ls", "arguments": {"path": "/"}}},
                {"id": "t2", "type": "function", "function": {"name": "pwd", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "bin", "name": "ls"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: gone", "name": "pwd"},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("system", "left"),
    [
        ([{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "Hi"}], ["Hi"]),
        ([{"type": "text", "text": "x-anthropic-other"}], []),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "about x-anthropic-"}], ["a\n\nabout x-anthropic-"]),
        ("x-anthropic-billing-header: cch=1;\nHi\nx-anthropic-", ["Hi\nx-anthropic-"]),
        ("x-anthropic-billing-header: cch=1;", []),
        (None, []),
    ],
)
def test_what_is_meant_for_anthropics_servers_is_left_out(system: object, left: list[str]) -> None:
    found = call_of(system=system).messages
    assert [each["content"] for each in found if each["role"] == "system"] == left


def test_tools_and_choices_are_translated() -> None:
    call = call_of(tools=[TOOL, {"type": "custom", **TOOL}, {"type": "web_search_20250305", "name": "web_search"}])
    function = {"name": "ls", "description": "Lists.", "parameters": {"type": "object"}}
    assert [dict(each) for each in call.tools] == [{"type": "function", "function": function}] * 2
    assert (call.tool_choice, call.parallel_tool_calls) == ("auto", True)
    choices: list[tuple[dict[str, Any], Any]] = [
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"), ({"type": "none"}, "none"),
        ({"type": "any"}, "required"), ({"type": "tool", "name": "ls"}, Named("ls")),
    ]  # fmt: skip
    for given, expected in choices:
        assert call_of(tool_choice=given).tool_choice == expected
    assert not call_of(tool_choice=choices[0][0]).parallel_tool_calls
    with pytest.raises(UsageError, match="tool_choice"):
        call_of(tool_choice={"type": "tool"})


def test_options_are_translated() -> None:
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    call = call_of(max_tokens=9, stop_sequences=["a", "b"], temperature=0.5, top_k=3, output_config=form)
    assert call.options == {"max_tokens": 9, "stop": ["a", "b"], "temperature": 0.5, "top_k": 3}
    assert call.response_format == JsonSchema({"type": "object"})


THOUGHT_AND_CALLED = [
    ReasoningDelta(0, "Let me "), ReasoningDelta(0, "look."), TextDelta(0, ""),
    TextDelta(0, "I "), TextDelta(0, "look:"),
    ToolCallStart(0, 0, "t1", "ls"), ToolCallDelta(0, 0, '{"path":'), ToolCallDelta(0, 0, '"/"}'),
    ToolCallStart(0, 1, "t2", "pwd"), Finish(0, "tool_calls"), Usage(10, 4, 7),
]  # fmt: skip


def wire(events: Iterable[Event], message: Message) -> list[dict[str, Any]]:
    """Events as they are sent; each as it was then."""
    return [json.loads(json.dumps(made)) for each in events for made in message.take(each)]


def test_thoughts_text_and_calls_are_blocks() -> None:
    message = Message("pocket", thoughts=True)
    sent = wire(THOUGHT_AND_CALLED, message)
    assert [(made["type"].removeprefix("content_block_"), made.get("index")) for made in sent] == [
        ("start", 0), ("delta", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("delta", 1), ("stop", 1),
        ("start", 2), ("delta", 2), ("delta", 2), ("stop", 2), ("start", 3), ("stop", 3),
        ("message_delta", None), ("message_stop", None),
    ]  # fmt: skip
    assert sent[0]["content_block"] == {"type": "thinking", "thinking": "", "signature": ""}
    assert sent[1]["delta"] == {"type": "thinking_delta", "thinking": "Let me "}
    assert sent[8]["content_block"] == {"type": "tool_use", "id": "t1", "name": "ls", "input": {}}
    assert sent[9]["delta"] == {"type": "input_json_delta", "partial_json": '{"path":'}
    assert sent[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert sent[-2]["usage"]["input_tokens"] == 6
    whole = ClientMessage.model_validate(message.as_json())
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, call, other = whole.content
    assert isinstance(thought, ThinkingBlock)
    assert thought.thinking == "Let me look."
    assert isinstance(text, TextBlock)
    assert text.text == "I look:"
    assert isinstance(call, ToolUseBlock)
    assert isinstance(other, ToolUseBlock)
    assert (call.input, other.input) == ({"path": "/"}, {})


def test_thoughts_are_shown_only_to_clients_that_ask() -> None:
    hidden = Message("pocket")
    assert wire(THOUGHT_AND_CALLED, hidden)[0]["content_block"]["type"] == "text"
    for thinking, shows in (
        (None, False), ({"type": "disabled"}, False), ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True), ({"type": "adaptive", "display": "omitted"}, False),
    ):  # fmt: skip
        body = parsed(MessagesRequest, {"messages": MESSAGES, "thinking": thinking}, HARMLESS)
        assert body.shows_thoughts is shows


def test_a_call_that_was_cut_off_has_no_input() -> None:
    message = Message("pocket")
    wire([ToolCallStart(0, 0, "t", "ls"), ToolCallDelta(0, 0, '{"pa'), Finish(0, "length"), Usage(1, 0, 1)], message)
    assert message.as_json()["content"][0]["input"] == {}
    assert message.as_json()["stop_reason"] == "max_tokens"
