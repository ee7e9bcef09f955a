"""The OpenAI client gets answers of the form that it asked for, calls of its tools, and thoughts apart from answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import jsonschema
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion import Choice

from halfbyte.async_answer import AsyncStream
from halfbyte.model import AnswerOptions, Model
from halfbyte.prompts import Prompt
from tests.constraints import mask_of

from .running import Running, pocket, running, source

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How do I list the files of a directory?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {"enum": ["ls", "tar", "grep"]},
        "flags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
        "count": {"type": "integer", "minimum": -5, "maximum": 50},
    },
    "required": ["command", "flags", "count"],
    "additionalProperties": False,
}
SIZE: dict[str, Any] = {"enum": ["small", "large", 5]}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"path": {"type": "string", "maxLength": 12}, "depth": {"type": "integer", "maximum": 9}},
    "required": ["path", "depth"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "list_files", "description": "Lists.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {},
                                                                   "additionalProperties": False}}},
]  # fmt: skip
THINKS = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>\n{# thoughts end with </think> #}"
THOUGHT = "Well, {?\n</think>\n\n"
CALLS: dict[str, Any] = {"model": "pocket", "messages": ASKED, "tools": TOOLS, "temperature": 0, "max_tokens": 120}


@dataclass
class Begun:
    """A grammar of answers that begin with some tokens, which another one has to let through."""

    ids: list[int]
    vocab_size: int
    rest: Any

    def start(self) -> BegunConstraint:
        return BegunConstraint(self, None if self.rest is None else self.rest.start())


@dataclass
class BegunConstraint:
    grammar: Begun
    rest: Any
    come: int = 0

    def words(self) -> np.ndarray:
        if self.come < len(self.grammar.ids):
            return mask_of([self.grammar.ids[self.come]], self.grammar.vocab_size)
        return (
            mask_of(range(self.grammar.vocab_size), self.grammar.vocab_size) if self.rest is None else self.rest.words()
        )

    def accept(self, token_id: int) -> None:
        self.come += 1
        if self.rest is not None:
            self.rest.accept(token_id)


def thinking() -> Model:
    """The pocket model with a template that has it think; its thought is always the same."""
    model = pocket()
    model.tokenizer._chat_template = THINKS
    answers, ids = model.astreams, model.tokenizer.encode_inside(THOUGHT)

    def after_a_thought(prompt: Prompt, n: int, **options: Unpack[AnswerOptions]) -> list[AsyncStream]:
        options["grammar"] = Begun(ids, model.spec.vocab_size, options.get("grammar"))
        return answers(prompt, n, **options)

    model.astreams = after_a_thought  # type: ignore[method-assign]
    return model


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running([source(), source("thinking", thinking)]) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


def schema_of(schema: dict[str, Any], **options: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **options}}


def calls_of(choice: Choice) -> list[tuple[str, Any]]:
    """Names and arguments, which are valid by the tools' schemas."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    found = []
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        assert call.id.startswith("call_")
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, schemas[call.function.name])
        found.append((call.function.name, arguments))
    return found


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 1, "n": 4}])
def test_answers_are_valid_by_their_schema(client: openai.OpenAI, sampling: Any) -> None:
    answer = client.chat.completions.create(
        model="pocket", messages=ASKED, response_format=schema_of(SCHEMA, strict=True), **sampling
    )
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
        assert choice.finish_reason == "stop"


def test_a_streamed_answer_of_a_schema_is_the_whole_one(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "pocket", "messages": ASKED, "temperature": 0, "logprobs": True, "response_format": schema_of(SCHEMA)
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert whole.logprobs is not None
    assert "".join(token.token for token in whole.logprobs.content or ()) == whole.message.content


def test_any_object_will_do(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="pocket", messages=ASKED, temperature=0, response_format={"type": "json_object"}, max_tokens=200
    )  # fmt: skip
    text = answer.choices[0].message.content or ""
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("structured", "texts"),
    [
        ({"regex": "[0-9]{3}-[a-f]{2}"}, None),
        ({"choice": ["tar xf", "ls -a", "rm*"]}, {"tar xf", "ls -a", "rm*"}),
        ({"grammar": 'start: ("a" | "b") "!"'}, {"a!", "b!"}),
        ({"json": json.dumps({"type": "boolean"})}, {"true", "false"}),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_other_forms(client: openai.OpenAI, structured: Any, texts: set[str] | None, chat: bool) -> None:
    extra = {"structured_outputs": structured}
    for seed in range(3):
        if chat:
            chosen = client.chat.completions.create(model="pocket", messages=ASKED, seed=seed, extra_body=extra)
            text = chosen.choices[0].message.content or ""
        else:
            text = (
                client.completions.create(model="pocket", prompt="Say: ", seed=seed, extra_body=extra).choices[0].text
            )
        if texts is None:
            assert len(text) == 6
            assert text[:3].isdigit()
        else:
            assert text in texts


def test_text_is_what_it_is_without_a_constraint_where_none_binds(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "pocket", "messages": ASKED, "temperature": 0}
    plain = client.chat.completions.create(**asked).choices[0]
    anything = client.chat.completions.create(**asked, extra_body={"structured_outputs": {"regex": r"(?s:.*)"}})
    assert anything.choices[0].message.content == plain.message.content
    none = client.chat.completions.create(**asked, tools=TOOLS, tool_choice="none").choices[0]
    assert (none.message.content, none.finish_reason) == (plain.message.content, "stop")
    assert none.message.tool_calls is None


def test_a_tool_may_be_called_or_not(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**CALLS).choices[0]
    assert (choice.finish_reason == "tool_calls") == bool(calls_of(choice))


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 7}])
def test_a_call_that_is_required_comes(client: openai.OpenAI, sampling: Any) -> None:
    asked = {**CALLS, **sampling, "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**asked).choices[0]
    assert len(calls_of(choice)) == 1
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None


@pytest.mark.parametrize("name", ["list_files", "now"])
def test_the_tool_that_is_named_is_called_once(client: openai.OpenAI, name: str) -> None:
    named: Any = {"type": "function", "function": {"name": name}}
    choice = client.chat.completions.create(**CALLS, tool_choice=named).choices[0]
    assert [called for called, _ in calls_of(choice)] == [name]


def test_streamed_calls_joined_are_the_whole_ones(client: openai.OpenAI) -> None:
    asked = {**CALLS, "tool_choice": "required", "parallel_tool_calls": False, "temperature": 1.5, "seed": 3}
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert [bool(delta.id) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert {delta.index for delta in deltas} == {0}
    assert len(deltas) > 1
    names = [delta.function.name for delta in deltas if delta.function and delta.function.name]
    arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    assert [(names[0], json.loads(arguments))] == calls_of(whole)
    assert len(names) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


def test_a_conversation_goes_on_after_a_call(client: openai.OpenAI) -> None:
    call = client.chat.completions.create(**CALLS, tool_choice="required", parallel_tool_calls=False).choices[0].message
    assert call.tool_calls is not None
    later: list[Any] = [
        *ASKED, call.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "a.txt b.txt"},
    ]  # fmt: skip
    answer = client.chat.completions.create(model="pocket", messages=later, tools=TOOLS, max_tokens=4)
    assert answer.choices[0].message.role == "assistant"


def test_text_of_a_form_or_a_call_may_come(client: openai.OpenAI) -> None:
    asked = {**CALLS, "temperature": 1.5, "seed": 0, "n": 8, "response_format": schema_of(SCHEMA)}
    choices = client.chat.completions.create(**asked, parallel_tool_calls=False).choices
    texts = [choice.message.content or "" for choice in choices if choice.finish_reason == "stop"]
    assert texts
    assert any(calls_of(choice) for choice in choices)
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize("form", [{}, {"response_format": schema_of(SIZE)}])
def test_thoughts_come_apart_and_are_not_held_to_the_form(client: openai.OpenAI, form: Any) -> None:
    asked: dict[str, Any] = {
        "model": "thinking", "messages": ASKED, "temperature": 0, "logprobs": True, "max_tokens": 60, **form
    }  # fmt: skip
    choice = client.chat.completions.create(**asked).choices[0]
    text = choice.message.content or ""
    assert choice.message.to_dict()["reasoning_content"] == "Well, {?"
    assert text
    assert "think>" not in text
    if form:
        jsonschema.validate(json.loads(text), SIZE)
    assert choice.logprobs is not None
    assert "".join(token.token for token in choice.logprobs.content or ()).strip() == text.strip()
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == text
    assert "".join(str(delta.to_dict().get("reasoning_content", "")) for delta in deltas) == "Well, {?"


def test_a_call_comes_after_thoughts(client: openai.OpenAI) -> None:
    asked = {**CALLS, "model": "thinking", "tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**asked).choices[0]
    assert len(calls_of(choice)) == 1
    assert choice.message.to_dict()["reasoning_content"] == "Well, {?"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": schema_of({"type": "strin"})}, "JSON schema cannot be enforced"),
        ({"response_format": schema_of({"type": "array", "uniqueItems": True}, strict=True)}, "uniqueItems"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "pattern cannot be enforced"),
        ({"structured_outputs": {"grammar": "start: x"}}, "grammar is not valid"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs says choice"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs says json, regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs says xml"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "one of the two"),
        ({"guided_regex": "a"}, "Did you mean structured_outputs"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "mow"}}}, "list_files, now"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "Two tools are named 'list_files'"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]}, "'f'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_held_is_refused(server: Running, body: dict[str, Any], words: str, stream: bool) -> None:
    response = server.post("/v1/chat/completions", {"messages": ASKED, "stream": stream, **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
