"""Requests of programs that no test can run, as they send them, and what these programs read of the answers.

The requests of aider 0.86.2, Continue's CLI 1.5.47 and Cline's CLI 3.0.65 were recorded from the programs, which had
the settings in docs/serving.md. Those of Open WebUI 0.12.4 and of Continue in an editor are what their code sends.
Fields, headers and the shapes of schemas are theirs; texts are our own and short.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from halfbyte.model import Model

from .running import Running, pocket, running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"role": "user", "content": "How do I list the files of a directory?"}
USAGE = {"include_usage": True}
KEY = "none"
BEARER = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
STAINLESS = {
    **BEARER, "accept": "application/json", "accept-encoding": "gzip, deflate", "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600.0", "x-stainless-async": "false",
}  # fmt: skip
AI_SDK = {**BEARER, "user-agent": "ai-sdk/openai-compatible/3.0.37 runtime/bun/1.3.13", "accept": "*/*"}
CONTINUE = {**BEARER, "api-key": KEY, "x-api-key": KEY, "user-agent": "node-fetch"}
READ: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "read_files", "description": "Read files.",
        "parameters": {
            "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
            "properties": {
                "files": {
                    "type": "array", "maxItems": 1, "description": "What to read.",
                    "items": {
                        "type": "object", "required": ["path"], "additionalProperties": False,
                        "properties": {
                            "path": {"type": "string", "maxLength": 20, "description": "A path."},
                            "start_line": {
                                "description": "The first line.",
                                "anyOf": [
                                    {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
                                    {"type": "null"},
                                ],
                            },
                        },
                    },
                },
            },
            "required": ["files"], "additionalProperties": False,
        },
    },
}  # fmt: skip
CALL = {"id": "call_1", "type": "function", "function": {"name": "read_files", "arguments": '{"files":[]}'}}

STREAMED = {
    "Open WebUI, a chat": (BEARER, {"stream": True, "messages": [QUESTION], "stream_options": USAGE}),
    "Open WebUI, a chat with parameters": (
        {**BEARER, "X-OpenWebUI-User-Name": "me", "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-Chat-Id": "2"},
        {"stream": True, "messages": [QUESTION], "stream_options": USAGE, "temperature": 0.0, "top_k": 40,
         "top_p": 0.9, "min_p": 0.05, "seed": 7, "stop": ["<|user|>"], "max_tokens": 50, "presence_penalty": 0.0,
         "frequency_penalty": 0.0, "reasoning_effort": "low", "logit_bias": {"5": -100}, "repeat_last_n": 64},
    ),
    "Open WebUI, after a call": (
        BEARER,
        {"stream": True, "stream_options": USAGE, "tools": [READ], "messages": [
            {"role": "system", "content": "Be brief."}, QUESTION,
            {"role": "assistant", "content": "", "reasoning_content": "I look.", "tool_calls": [{"index": 0, **CALL}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "a.txt"},
        ]},
    ),
    "Continue's CLI": (
        STAINLESS | {"user-agent": "ls/JS 5.23.2"},
        {"messages": [{"role": "system", "content": "You are an agent."}, QUESTION], "stream": True,
         "stream_options": USAGE, "tools": [READ]},
    ),
    "Continue, in an editor": (
        CONTINUE,
        {"messages": [{"role": "system", "content": "Be brief."}, QUESTION,
                      {"role": "assistant", "content": " ", "tool_calls": [CALL]},
                      {"role": "tool", "content": "a.txt", "tool_call_id": "call_1"}],
         "max_tokens": 50, "stream": True, "stream_options": USAGE, "tools": [READ], "parallel_tool_calls": False},
    ),
    "Cline's CLI": (
        AI_SDK,
        {"messages": [{"role": "system", "content": "You are an agent."}, QUESTION], "tools": [READ],
         "tool_choice": "auto", "stream": True, "stream_options": USAGE},
    ),
    "Cline, with thoughts and a call before": (
        AI_SDK,
        {"messages": [
            {"role": "system", "content": "You are an agent."},
            {"role": "user", "content": [{"type": "text", "text": "List the files."},
                                         {"type": "text", "text": "This is a folder."}]},
            {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "a.txt"},
         ],
         "max_tokens": 50, "temperature": 0, "reasoning_effort": "medium", "tools": [READ], "tool_choice": "auto",
         "stream": True, "stream_options": USAGE},
    ),
    "aider": (
        STAINLESS | {"user-agent": "OpenAI/Python 2.20.0"},
        {"messages": [
            {"role": "system", "content": "Act as a programmer."}, {"role": "user", "content": "Change it."},
            {"role": "assistant", "content": "Ok."}, QUESTION,
         ],
         "stream": True, "temperature": 0},
    ),
}  # fmt: skip
WHOLE = {
    "Open WebUI, a title": (
        BEARER, {"messages": [QUESTION], "stream": False, "max_tokens": 1000, "temperature": 0.1, "seed": 1},
    ),
    "aider, a summary": (STAINLESS, {"messages": [QUESTION], "temperature": 0}),
}  # fmt: skip
CONTINUED = {
    "max_tokens": 24, "temperature": 0.01, "stream": True, "prompt": "def f(a, b):\n    return a +",
    "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", "/src/", "#- coding: utf-8", "```"],
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(api_key=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pocket() as found:
        yield found


def asked(server: Running, path: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    with server.http(headers=headers) as client:
        return client.post(path, content=json.dumps({"model": "pocket", **body}))


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream has, as clients read it: lines of data up to the last one."""
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def expected(model: Model, body: dict[str, Any]) -> str:
    """What the library answers to a greedy request."""
    options = {name: body[name] for name in ("max_tokens", "logit_bias", "stop", "tools") if name in body}
    if "logit_bias" in options:
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    return model.chat(body["messages"], **options).text


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_chat_is_answered_as_the_client_reads_it(server: Running, model: Model, name: str) -> None:
    headers, body = STREAMED[name]
    response = asked(server, CHAT, body, headers)
    assert response.status_code == 200, response.text
    found = events(response)
    assert all(event["object"] == "chat.completion.chunk" and event["model"] == "pocket" for event in found)
    choices = [event["choices"][0] for event in found if event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] in (
        ["stop"], ["length"], ["tool_calls"],
    )  # fmt: skip
    told = [event["usage"] for event in found if event.get("usage")]
    assert len(told) == ("stream_options" in body)
    assert all(each["total_tokens"] == each["prompt_tokens"] + each["completion_tokens"] > 0 for each in told)
    if body.get("temperature") == 0 and "tools" not in body:
        assert text == expected(model, body)


def test_a_call_comes_in_pieces_that_clients_join(server: Running) -> None:
    headers, body = STREAMED["Cline's CLI"]
    found = events(asked(server, CHAT, {**body, "tool_choice": "required", "temperature": 0}, headers))
    pieces = [
        call for event in found for choice in event["choices"] for call in choice["delta"].get("tool_calls", ())
        if call["index"] == 0
    ]  # fmt: skip
    first, *rest = pieces
    assert (first["type"], first["function"]["name"], bool(first["id"])) == ("function", "read_files", True)
    assert all("id" not in piece and "name" not in piece["function"] for piece in rest)
    arguments = json.loads("".join(piece["function"]["arguments"] for piece in pieces))
    jsonschema.validate(arguments, READ["function"]["parameters"])


@pytest.mark.parametrize("name", WHOLE)
def test_a_chat_is_answered_at_once(server: Running, model: Model, name: str) -> None:
    headers, body = WHOLE[name]
    response = asked(server, CHAT, body, headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0
    if body["temperature"] == 0:
        assert answer["choices"][0]["message"]["content"] == expected(model, body)


def test_an_editor_has_a_text_continued(server: Running) -> None:
    """Continue's completion while one types. The markers of another model's template are plain stop strings here."""
    found = events(asked(server, TEXT, CONTINUED, CONTINUE))
    text = "".join(event["choices"][0]["text"] for event in found)
    assert text.startswith(" b\n")


@pytest.mark.parametrize(("path", "status", "words"), [(TEXT, 400, "suffix"), ("/v1/fim/completions", 404, "/v1/fim")])
def test_a_text_between_two_others_is_refused(server: Running, path: str, status: int, words: str) -> None:
    response = asked(server, path, {**CONTINUED, "suffix": "    return c"}, CONTINUE)
    assert (response.status_code, words in response.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize("headers", [BEARER, CONTINUE, {"x-api-key": KEY}])
def test_models_are_listed_with_what_clients_read(server: Running, headers: dict[str, str]) -> None:
    with server.http(headers=headers) as client:
        listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(each["id"], each["name"], each["object"]) for each in listed["data"]] == [("pocket", "pocket", "model")]


def test_a_key_that_is_empty_is_refused(server: Running) -> None:
    """Open WebUI sends no header then."""
    assert asked(server, CHAT, {"messages": [QUESTION]}, {"content-type": "application/json"}).status_code == 401


def test_a_sampler_under_another_name_is_refused_with_ours(server: Running) -> None:
    """Open WebUI's slider "Repeat Penalty"."""
    response = asked(server, CHAT, {"messages": [QUESTION], "repeat_penalty": 1.1}, BEARER)
    assert response.status_code == 400
    assert "repetition_penalty" in response.json()["error"]["message"]
