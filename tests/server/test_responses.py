"""`/v1/responses`: what OpenAI's own client gets, and how requests and events are translated."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)

from halfbyte.errors import UsageError
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
from halfbyte.server.errors import ApiError
from halfbyte.server.openai_options import parsed
from halfbyte.server.openai_responses import HARMLESS, GrowingResponse, ResponsesRequest, shown
from halfbyte.text.forms import JsonObject, JsonSchema

from .running import Running, losing, pocket

QUESTION = "How do I list the files of a directory?"
PATH = "/v1/responses"
LS: dict[str, Any] = {"type": "function", "name": "ls", "parameters": {"type": "object"}, "strict": False}
ELSEWHERE = [
    {"type": "web_search"}, {"type": "image_generation"}, {"type": "custom", "name": "apply_patch", "format": {}},
    {"type": "namespace", "name": "mcp", "tools": [LS]}, {"type": "something_new"},
]  # fmt: skip


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


def greedy(client: openai.OpenAI, given: Any = QUESTION, **options: Any) -> Response:
    found = client.responses.create(model="pocket", input=given, temperature=0, **options)
    assert isinstance(found, Response)
    return found


def test_an_answer_is_that_of_the_library(client: openai.OpenAI) -> None:
    answer = greedy(client, max_output_tokens=40)
    with pocket() as model:
        expected = model.chat([{"role": "user", "content": QUESTION}], max_tokens=40)
    assert answer.output_text == expected.text
    assert (answer.object, answer.status, answer.model) == ("response", "completed", "pocket")
    assert answer.usage is not None
    assert answer.usage.input_tokens == expected.prompt_tokens
    assert answer.usage.output_tokens == expected.new_tokens
    assert (answer.temperature, answer.top_p, answer.parallel_tool_calls) == (0, 1, True)


def test_a_stream_is_the_answer(client: openai.OpenAI) -> None:
    whole = greedy(client)
    with client.responses.stream(model="pocket", input=QUESTION, temperature=0) as stream:
        events = list(stream)
        last = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert kinds.count("response.output_text.delta") > 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.output_text == whole.output_text
    assert last.usage is not None
    assert last.usage.input_tokens_details.cached_tokens == last.usage.input_tokens - 1


def test_what_a_coding_agent_sends_is_answered(server: Running) -> None:
    """The twelve fields of Codex CLI, with its roles, its kinds of tools, and the whole history."""
    history = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You may run commands."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<cwd>/</cwd>"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "web_search_call", "status": "completed", "action": {}},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Use ls."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And hidden ones?"}]},
    ]
    body = {
        "model": "pocket", "instructions": "You are an agent.", "input": history, "tools": ELSEWHERE,
        "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False, "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
    }  # fmt: skip
    response = server.post(PATH, body)
    assert response.status_code == 200
    frames = [frame.split("\n") for frame in response.text.strip().split("\n\n")]
    sent = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name for name, _ in frames] == [f"event: {made['type']}" for made in sent]
    assert sent[-1]["type"] == "response.completed"
    assert sent[-1]["response"]["tools"] == ELSEWHERE
    assert sent[-1]["response"]["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("given", ["", []])
@pytest.mark.parametrize("instructions", [None, "You are an agent."])
def test_a_probe_without_input_is_answered(client: openai.OpenAI, given: Any, instructions: str | None) -> None:
    answer = greedy(client, given, max_output_tokens=1, instructions=instructions)
    assert answer.usage is not None
    assert answer.usage.output_tokens == 1


def test_an_answer_that_was_cut_off_says_so(client: openai.OpenAI) -> None:
    answer = greedy(client, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="pocket", input=QUESTION, max_output_tokens=2, stream=True))
    assert events[-1].type == "response.incomplete"


def test_log_probabilities_are_those_of_chat_completions(client: openai.OpenAI) -> None:
    answer = greedy(client, top_logprobs=2, include=["message.output_text.logprobs"])
    chat = client.chat.completions.create(
        model="pocket", messages=[{"role": "user", "content": QUESTION}], temperature=0, logprobs=True, top_logprobs=2
    )
    item = answer.output[0]
    assert isinstance(item, ResponseOutputMessage)
    part = item.content[0]
    assert isinstance(part, ResponseOutputText)
    told = chat.choices[0].logprobs
    assert told is not None
    assert [(each.token, each.bytes) for each in part.logprobs or ()] == [
        (each.token, each.bytes) for each in told.content or ()
    ]
    assert [len(each.top_logprobs) for each in part.logprobs or ()] == [2] * len(told.content or ())


def test_a_device_lost_on_the_way_ends_the_stream_as_failed() -> None:
    with losing() as (server, lose), server.client() as client:
        stream = client.responses.create(
            model="pocket", input=QUESTION, stream=True, max_output_tokens=1500, extra_body={"ignore_eos": True}
        )
        next(stream)
        lose()
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert last.response.error.message.startswith("The GPU was lost.")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input is missing"),
        ({"input": 5}, "input must be"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id is 'resp_1'"),
        ({"input": "a", "conversation": {"id": "c"}}, "conversation is"),
        ({"input": "a", "background": True}, "background is"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0 refers to an item"),
        ({"input": [{"type": "local_shell_call"}]}, "input.0 is of type 'local_shell_call'"),
        ({"input": [{"role": "king", "content": "x"}]}, "'king'"),
        ({"input": [{"role": "user"}]}, "input.0.content is missing"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "'input_image'"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "without a text"),
        ({"input": [{"type": "function_call", "name": "ls", "arguments": "{}"}]}, "input.0 has no call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input.0.output is missing"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools.0 has no name"),
        ({"input": "a", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format has the type 'xml'"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "without a schema"),
        ({"input": "a", "max_output_tokens": 0}, "max_tokens must be"),
        ({"input": "a", "max_tokens": 5}, "Did you mean max_output_tokens"),
        ({"messages": [], "input": "a"}, "Did you mean input"),
        ({"input": "a", "prompt": {"id": "x"}}, "'prompt'"),
        ({"input": "word " * 5000}, "context holds"),
        ({"input": "word " * 5000, "stream": True}, "context holds"),
    ],
)
def test_what_cannot_be_answered_is_refused(server: Running, body: dict[str, Any], words: str) -> None:
    response = server.post(PATH, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_harmless_parameters_are_taken(server: Running) -> None:
    body = {"input": "a", "max_output_tokens": 1, "background": False, "text": {"verbosity": "low"}}
    assert server.post(PATH, {**body, **{name: {} for name in HARMLESS}}).status_code == 200


def call_of(**body: Any) -> ChatCall:
    return parsed(ResponsesRequest, {"input": QUESTION, **body}, HARMLESS).call("pocket")


def test_a_conversation_with_tools_becomes_messages_for_templates() -> None:
    given = [
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "List /."},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": '{"path":"/"}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "sh", "input": "pwd"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "bin"}]},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "/"},
        {"role": "developer", "content": "Now be quick."},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Done."}, {"type": "refusal", "refusal": "No"}],
        },
    ]  # fmt: skip
    assert [dict(each) for each in call_of(instructions="Be brief.", input=given).messages] == [
        {"role": "system", "content": "Be brief.\n\nUse tools."},
        {"role": "user", "content": "List /."},
        {
            "role": "assistant", "content": "", "reasoning_content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path":"/"}'}},
                {"id": "c2", "type": "function", "function": {"name": "sh", "arguments": {"input": "pwd"}}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "bin", "name": "ls"},
        {"role": "tool", "tool_call_id": "c2", "content": "/", "name": "sh"},
        {"role": "user", "content": "Now be quick."},
        {"role": "assistant", "content": "Done.\nNo"},
    ]  # fmt: skip


def test_only_functions_are_offered_and_choices_are_translated() -> None:
    pwd = {"type": "function", "name": "pwd", "description": "Where.", "parameters": None}
    call = call_of(tools=[*ELSEWHERE, LS, pwd], parallel_tool_calls=False)
    assert [dict(each) for each in call.tools] == [
        {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}},
        {"type": "function", "function": {"name": "pwd", "description": "Where."}},
    ]
    assert not call.parallel_tool_calls
    for choice in ("auto", "none", "required"):
        assert call_of(tool_choice=choice).tool_choice == choice
    assert call_of(tool_choice={"type": "function", "name": "ls"}).tool_choice == Named("ls")
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "pwd"}]}
    some = call_of(tools=[LS, pwd], tool_choice=allowed)
    assert some.tool_choice == "required"
    assert [tool["function"]["name"] for tool in some.tools] == ["pwd"]
    with pytest.raises(UsageError, match="tool_choice"):
        call_of(tool_choice={"type": "custom", "name": "apply_patch"})


def test_options_are_translated() -> None:
    call = call_of(max_output_tokens=9, top_p=0.5, min_p=0.1, text={"format": {"type": "json_object"}})
    assert call.options == {"max_tokens": 9, "temperature": 1.0, "top_p": 0.5, "min_p": 0.1}
    assert call.response_format == JsonObject()
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    assert call_of(text={"format": schema}).response_format == JsonSchema({"type": "object"})


THOUGHT_AND_CALLED = [
    ReasoningDelta(0, "Let me "), ReasoningDelta(0, "look."), TextDelta(0, ""), TextDelta(0, "I "),
    TextDelta(0, "look:"), ToolCallStart(0, 0, "c1", "ls"), ToolCallDelta(0, 0, '{"path":'),
    ToolCallDelta(0, 0, '"/"}'), ToolCallStart(0, 1, "c2", "pwd"), ToolCallDelta(0, 1, "{}"), Finish(0, "tool_calls"),
    Usage(10, 4, 7),
]  # fmt: skip


def growing() -> GrowingResponse:
    body = parsed(ResponsesRequest, {"input": QUESTION}, HARMLESS)
    return GrowingResponse(shown(body, body.call("pocket")))


def wire(events: Iterable[Event], response: GrowingResponse) -> list[dict[str, Any]]:
    """Events as they are sent; each as it was then."""
    return [json.loads(json.dumps(made)) for each in events for made in response.take(each)]


def test_thoughts_text_and_calls_are_items() -> None:
    response = growing()
    sent = wire(THOUGHT_AND_CALLED, response)
    assert [(made["type"].removeprefix("response."), made.get("output_index")) for made in sent] == [
        ("output_item.added", 0), ("content_part.added", 0), ("reasoning_text.delta", 0), ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0), ("content_part.done", 0), ("output_item.done", 0),
        ("output_item.added", 1), ("content_part.added", 1), ("output_text.delta", 1), ("output_text.delta", 1),
        ("output_text.done", 1), ("content_part.done", 1), ("output_item.done", 1),
        ("output_item.added", 2), ("function_call_arguments.delta", 2), ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2), ("output_item.done", 2),
        ("output_item.added", 3), ("function_call_arguments.delta", 3), ("function_call_arguments.done", 3),
        ("output_item.done", 3), ("completed", None),
    ]  # fmt: skip
    assert sent[0]["item"]["content"] == []
    assert sent[1]["part"]["text"] == ""
    assert sent[14]["item"]["arguments"] == ""
    assert sent[17]["arguments"] == '{"path":"/"}'
    assert {made["item_id"] for made in sent[15:18]} == {sent[14]["item"]["id"]}
    assert sent[-1]["response"]["output"] == [sent[place]["item"] for place in (6, 13, 18, 22)]
    thought, said, call, other = Response.model_validate(response.as_json()).output
    assert isinstance(thought, ResponseReasoningItem)
    assert [part.text for part in thought.content or ()] == ["Let me look."]
    assert isinstance(said, ResponseOutputMessage)
    assert isinstance(said.content[0], ResponseOutputText)
    assert said.content[0].text == "I look:"
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.call_id, call.name, call.arguments, call.status) == ("c1", "ls", '{"path":"/"}', "completed")
    assert isinstance(other, ResponseFunctionToolCall)
    assert (other.call_id, other.arguments) == ("c2", "{}")


def test_a_response_that_fails_tells_why_and_keeps_what_there_is() -> None:
    response = growing()
    wire(THOUGHT_AND_CALLED[:5], response)
    last = response.fail(ApiError(503, "The device is lost.", code="device_error"), "req_1")
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "device_error", "message": "The device is lost."}
    assert [item["status"] for item in last["response"]["output"]] == ["completed", "in_progress"]
