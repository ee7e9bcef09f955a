# ruff: noqa: RUF001 - DeepSeek's delimiters have wide bars
"""Calls of tools in every form that models write them: read whatever way the text is cut, and held to a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from halfbyte.errors import UsageError
from halfbyte.pocket import __path__ as pocket_path
from halfbyte.text import TextStream, Tokenizer
from halfbyte.text.grammar import GrammarCompiler
from halfbyte.text.template import ChatTemplate
from halfbyte.text.tools import (
    Event,
    ReasoningPiece,
    TextPiece,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolFormat,
    read_tools,
    tool_format,
    tool_formats,
)
from tests.unit.masks import accepts, walk

CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "wind": {"$ref": "#/$defs/wind"},
        "alerts": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {
        "wind": {
            "type": "object",
            "properties": {"gusts": {"type": "boolean"}, "above": {"type": "array", "items": {"type": "number"}}},
            "required": ["gusts"],
            "additionalProperties": False,
        }
    },
}
DEFINITIONS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Forecast.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "ping"}},
]
TOOLS = read_tools(DEFINITIONS)
SCHEMAS = {tool.name: tool.parameters for tool in TOOLS}
PARIS: dict[str, Any] = {"city": 'Pa"ris\n🦙', "unit": "C", "days": 3}
DEEP: dict[str, Any] = {"city": "a", "wind": {"gusts": True, "above": [1, 2.5]}, "alerts": False}
GUSTS: dict[str, Any] = {"alerts": False, "city": "a", "wind": {"above": [1, 2.5], "gusts": True}}

Found = list[tuple[str, Any]]
"""What an answer holds: ("text", …), or a tool's name and arguments, or ("cut", name) for a call without an end."""

TEMPLATES = {
    "hermes": "<tools>{{ tools }}</tools> <tool_call>{{ m.tool_calls[0].function.arguments | tojson }}</tool_call>",
    "qwen coder": "<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>",
    "lfm": "<|tool_list_start|>{{ tools }}<|tool_list_end|>",
    "gemma": "<|tool_call>call:{{ name }}{<tool_call|>",
    "mistral args": "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}",
    "mistral list": "[TOOL_CALLS] [{{ calls }}]",
    "llama": '<|start_header_id|>{"name": {{ name }}, "parameters": {{ arguments }}}',
    "phi": "<|tool|>{{ m.tools }}<|/tool|>",
    "harmony": "<|channel|>commentary to=functions.{{ name }}",
    "granite": "<|start_of_role|>available_tools<|end_of_role|>{{ tools }} respond with <|tool_call|> and a JSON list",
    "granite roles": "<|start_of_role|>assistant<|end_of_role|><|tool_call|>{{ m.role == 'assistant_tool_call' }}",
    "deepseek": "<｜tool▁calls▁begin｜>{{ m['tool_calls'] is defined }}",
    "deepseek fenced": "<｜tool▁calls▁begin｜>```json {{ 'tool_calls' in m }}",
    "deepseek unwritten": "<｜tool▁calls▁begin｜>```json {% for c in m['tool_calls'] %}",
    "olmo": "<function_calls>{{ m.tool_calls }}</function_calls>",
    "olmo keys": "<function_calls>{{ m.function_calls }}</function_calls>",
    "hermes unwritten": "<tools>{{ tools }}</tools> <tool_call></tool_call>",
    "lfm written": "<|tool_call_start|>{{ m.tool_calls }}<|tool_call_end|>",
    "prompted": "{{ messages }}",
}
FORMATS = {name: tool_format(source) for name, source in TEMPLATES.items()}


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def named(name: str, arguments: object, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {dumped(arguments)}}}'


CALLS: dict[str, list[tuple[str, Found]]] = {
    "hermes": [
        (f"<tool_call>\n{named('get_weather', PARIS)}\n</tool_call>", [("get_weather", PARIS)]),
        (
            f"<tool_call>\n{named('get_weather', DEEP)}\n</tool_call>\n<tool_call>\n{named('ping', {})}\n</tool_call>",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "qwen coder": [
        (
            '<tool_call>\n<function=get_weather>\n<parameter=city>\nPa"ris\n🦙\n</parameter>\n<parameter=unit>\nC\n'
            "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            [("get_weather", PARIS)],
        ),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\na\n</parameter>\n<parameter=wind>\n"
            '{"gusts": true, "above": [1, 2.5]}\n</parameter>\n<parameter=alerts>\nfalse\n</parameter>\n</function>\n'
            "</tool_call>\n<tool_call>\n<function=ping>\n</function>\n</tool_call>",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "lfm": [
        (
            '<|tool_call_start|>[get_weather(city="Pa\\"ris\\n🦙", unit="C", days=3)]<|tool_call_end|>',
            [("get_weather", PARIS)],
        ),
        (
            '<|tool_call_start|>[get_weather(city="a", wind={"gusts": True, "above": [1, 2.5]}, alerts=False), ping()]'
            "<|tool_call_end|>",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "gemma": [
        (
            '<|tool_call>call:get_weather{city:<|"|>Pa"ris\n🦙<|"|>,days:3,unit:<|"|>C<|"|>}<tool_call|>',
            [("get_weather", PARIS)],
        ),
        (
            '<|tool_call>call:get_weather{alerts:false,city:<|"|>a<|"|>,wind:{gusts:true,above:[1,2.5]}}<tool_call|>'
            "<|tool_call>call:ping{}<tool_call|>",
            [("get_weather", GUSTS), ("ping", {})],
        ),
    ],
    "mistral args": [
        (f"[TOOL_CALLS]get_weather[ARGS]{dumped(PARIS)}", [("get_weather", PARIS)]),
        (
            f"[TOOL_CALLS]get_weather[ARGS]{dumped(DEEP)}[TOOL_CALLS]ping[ARGS]{{}}",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "mistral list": [
        (f"[TOOL_CALLS] [{named('get_weather', PARIS)}]", [("get_weather", PARIS)]),
        (
            f"[TOOL_CALLS] [{named('get_weather', DEEP)}, {named('ping', {})}]",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "llama": [(named("get_weather", PARIS, "parameters"), [("get_weather", PARIS)])],
    "phi": [
        (f"<|tool_call|>[{named('get_weather', PARIS)}]<|/tool_call|>", [("get_weather", PARIS)]),
        (
            f"<|tool_call|>[{named('get_weather', DEEP)}, {named('ping', {})}]<|/tool_call|>",
            [("get_weather", DEEP), ("ping", {})],
        ),
    ],
    "harmony": [
        (
            f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{dumped(PARIS)}",
            [("get_weather", PARIS)],
        )
    ],
}
CALLS["prompted"] = CALLS["hermes unwritten"] = CALLS["hermes"]
CALLS["lfm written"] = CALLS["lfm"]
CALLS["granite"] = CALLS["granite roles"] = [
    (f"<|tool_call|>[{named('get_weather', PARIS)}]", [("get_weather", PARIS)]),
    (
        f"<|tool_call|>[{named('get_weather', DEEP)}, {named('ping', {})}]",
        [("get_weather", DEEP), ("ping", {})],
    ),
]
BEGIN, END, CALL, SEP, CALL_END = (
    f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "sep", "call▁end")
)
CALLS["deepseek"] = [
    (f"{BEGIN}{CALL}get_weather{SEP}{dumped(PARIS)}{CALL_END}{END}", [("get_weather", PARIS)]),
    (
        f"{BEGIN}{CALL}get_weather{SEP}{dumped(DEEP)}{CALL_END}{CALL}ping{SEP}{{}}{CALL_END}{END}",
        [("get_weather", DEEP), ("ping", {})],
    ),
]


def fenced(name: str, arguments: object) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{dumped(arguments)}\n```{CALL_END}"


CALLS["deepseek fenced"] = CALLS["deepseek unwritten"] = [
    (f"{BEGIN}{fenced('get_weather', PARIS)}{END}", [("get_weather", PARIS)]),
    (
        f"{BEGIN}{fenced('get_weather', DEEP)}\n{fenced('ping', {})}{END}",
        [("get_weather", DEEP), ("ping", {})],
    ),
]
CALLS["olmo"] = CALLS["olmo keys"] = [
    (
        '<function_calls>get_weather(city="Pa\\"ris\\n🦙", unit="C", days=3)</function_calls>',
        [("get_weather", PARIS)],
    ),
    (
        '<function_calls>\nget_weather(city="a", wind={"gusts": True, "above": [1, 2.5]}, alerts=False)\nping()\n'
        "</function_calls>",
        [("get_weather", DEEP), ("ping", {})],
    ),
]

PECULIAR: dict[str, list[tuple[str, Found]]] = {
    "hermes": [
        ("No <tool_cal, <b>.\n", [("text", "No <tool_cal, <b>.\n")]),
        (f"I ask.\n\n<tool_call>{named('f', {})}</tool_call>\n", [("text", "I ask."), ("f", {})]),
        ('<tool_call>{"arguments": {"a": [1]}, "name": "f", "x": {}}</tool_call>!', [("f", {"a": [1]}), ("text", "!")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", {"a": 1})]),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", {})]),
        ('<tool_call>{"name": "f"}</tool_call>', [("f", {})]),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>}\\""}}', [("f", {"a": '</tool_call>}"'})]),
        ("<tool_call>\n[1]</tool_call> x", [("text", "<tool_call>\n[1]</tool_call> x")]),
        ('<tool_call>{"city": "x"}', [("text", '<tool_call>{"city": "x"}')]),
        ('<tool_call>{"name": "f", "arguments": {"a": "b', [("cut", "f")]),
        ('<tool_call>{"na', [("text", '<tool_call>{"na')]),
        ("  \n", [("text", "  \n")]),
    ],
    "llama": [
        (f"<|python_tag|>{named('ping', {}, 'parameters')}", [("ping", {})]),
        (f"\n {named('ping', {}, 'parameters')}; {named('ping', {'a': 1})}", [("ping", {}), ("ping", {"a": 1})]),
        ('{"type": "function", "name": "ping", "parameters": {}}', [("ping", {})]),
        ('{"name": "Anna", "age": 3}', [("text", '{"name": "Anna", "age": 3}')]),
        ('{"city": {"a": 1}} ', [("text", '{"city": {"a": 1}} ')]),
        ("Hello {", [("text", "Hello {")]),
        ("{", [("text", "{")]),
        ("<|python_tag|>print(1)", [("text", "<|python_tag|>print(1)")]),
        (f"{named('ping', {})} Done; {{", [("ping", {}), ("text", " Done; {")]),
    ],
    "lfm": [
        (
            "<|tool_call_start|>[f(a='it\\'s \\x41\\u00e9', b=(1, None,), c=0x, d={}, e=-1e3,)]<|tool_call_end|>Now.",
            [("f", {"a": "it's Aé", "b": [1, None], "c": "0x", "d": {}, "e": -1000.0}), ("text", "Now.")],
        ),
        ('<|tool_call_start|>[f(a="\\ud83e\\udd99\\U0001f999\\q")]<|tool_call_end|>', [("f", {"a": "🦙🦙\\q"})]),
        (
            f"<|tool_call_start|>[{named('f', {'a': 1})}, {named('g', {})}]<|tool_call_end|>",
            [("f", {"a": 1}), ("g", {})],
        ),
        ("<|tool_call_start|>[oops]<|tool_call_end|>", [("text", "<|tool_call_start|>[oops]<|tool_call_end|>")]),
        ("<|tool_call_start|>[f(a=[1, ", [("cut", "f")]),
        ("<|tool_call_start|>[f(a=" + "[" * 99, [("cut", "f")]),
    ],
    "gemma": [
        (
            '<|tool_call>call:f{<|"|>a b<|"|>:[<|"|><b>\\n<|"|>],c:null}<tool_call|>',
            [("f", {"a b": ["<b>\\n"], "c": None})],
        ),
        ("<|tool_call>nothing", [("text", "<|tool_call>nothing")]),
        ('<|tool_call>call:f{a:<|"|>b', [("cut", "f")]),
    ],
    "qwen coder": [
        (
            "Well.\n<tool_call>\n<function=f>\n<parameter=a>\nTrue\n</parameter>\n<parameter=b>\nx < y\n</parameter>\n"
            "</function>\n</tool_call>",
            [("text", "Well."), ("f", {"a": True, "b": "x < y"})],
        ),
        ("<function=ping></function>", [("ping", {})]),
        ("<tool_call>[]", [("text", "<tool_call>[]")]),
        ("<tool_call><function=f><parameter=a>1", [("cut", "f")]),
        (
            "<function=get_weather><parameter=city>3</parameter><parameter=days>three</parameter></function>",
            [("get_weather", {"city": "3", "days": "three"})],
        ),
    ],
    "mistral args": [
        ('[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}', [("f", {"a": 1})]),
        ('Hm.[TOOL_CALLS]f{"a": 1}', [("text", "Hm."), ("f", {"a": 1})]),
        ("[TOOL_CALLS]f g", [("text", "[TOOL_CALLS]f g")]),
    ],
    "mistral list": [
        ('[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}] ', [("f", {})]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a"', [("cut", "f")]),
    ],
    "phi": [
        (f"<|tool_call|>{named('f', {'a': 1})}<|/tool_call|>", [("f", {"a": 1})]),
        ("<|tool_call|>[]<|/tool_call|>", [("text", "<|tool_call|>[]<|/tool_call|>")]),
    ],
    "granite": [
        (f"I ask. <|tool_call|>\n{named('f', {'a': 1})}", [("text", "I ask."), ("f", {"a": 1})]),
        ("<|tool_call|>nothing", [("text", "<|tool_call|>nothing")]),
        ('<|tool_call|>[{"name": "f", "arguments": {"a"', [("cut", "f")]),
    ],
    "deepseek": [
        (f'Hm.{BEGIN}{fenced("f", {"a": "```"})}{END}', [("text", "Hm."), ("f", {"a": "```"})]),
        (f'{CALL}f{SEP}{{"a": 1}}{CALL_END}', [("f", {"a": 1})]),
        (f"{BEGIN}{CALL}f <b>", [("text", f"{BEGIN}{CALL}f <b>")]),
        (f"{BEGIN}x", [("text", f"{BEGIN}x")]),
        (f'{CALL}f{SEP}{{"a": ', [("cut", "f")]),
        (f"{CALL}function", [("text", f"{CALL}function")]),
    ],
    "olmo": [
        (
            "Hm.\n<function_calls>f(a='x', b=null, c=true, d=None)</function_calls>",
            [("text", "Hm."), ("f", {"a": "x", "b": None, "c": True, "d": None})],
        ),
        ("<function_calls>oops</function_calls>", [("text", "<function_calls>oops</function_calls>")]),
        ("<function_calls>\nf(a=[1, ", [("cut", "f")]),
    ],
    "harmony": [
        ('<|channel|>commentary to=functions.f json<|message|>{"a": 1}<|call|>', [("f", {"a": 1})]),
        ("Hello.", [("text", "Hello.")]),
    ],
}  # fmt: skip

EXAMPLES = [
    pytest.param(name, text, found, id=f"{name} {index}")
    for name in CALLS
    for index, (text, found) in enumerate([*CALLS[name], *PECULIAR.get(name, [])])
]


def found_in(events: Iterable[Event]) -> Found:
    """What events say, pieces joined."""
    found: Found = []
    for event in events:
        match event:
            case TextPiece(text) | ReasoningPiece(text):
                kind = "text" if isinstance(event, TextPiece) else "reasoning"
                assert text
                if found and found[-1][0] == kind:
                    text = found.pop()[1] + text
                found.append((kind, text))
            case ToolCallStart(index, name):
                assert index == sum(1 for kind, _ in found if kind not in ("text", "reasoning"))
                found.append(("cut", name))
            case ToolCallArguments(index, piece):
                assert piece
                kind, *before = found[-1]
                assert kind == "cut"
                found[-1] = ("cut", *before, piece)  # type: ignore[assignment]
            case ToolCallEnd():
                _, name, *pieces = found[-1]
                found[-1] = (name, json.loads("".join(pieces)))
    return [(item[0], item[1]) for item in found]


def parsed(form: ToolFormat, pieces: Sequence[str]) -> Found:
    parser = form.parser(TOOLS)
    return found_in([*(event for piece in pieces for event in parser.push(piece)), *parser.finish()])


def cut(text: str, seed: int) -> list[str]:
    choose = random.Random(seed)
    places = sorted(choose.randrange(len(text) + 1) for _ in range(choose.randrange(1, 8)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "text", "found"), EXAMPLES)
def test_calls_are_found_however_the_text_is_cut(name: str, text: str, found: Found) -> None:
    assert parsed(FORMATS[name], [text]) == found
    assert parsed(FORMATS[name], list(text)) == found
    for seed in range(30):
        assert parsed(FORMATS[name], cut(text, seed)) == found


@pytest.mark.parametrize("name", CALLS)
def test_arguments_come_as_they_are_written(name: str) -> None:
    """Not only when a call is complete: clients show them."""
    text, _ = CALLS[name][0]
    parser = FORMATS[name].parser(TOOLS)
    events = [event for character in text for event in parser.push(character)]
    pieces = [event.json_piece for event in events if isinstance(event, ToolCallArguments)]
    assert len(pieces) > 8
    assert json.loads("".join(pieces)) == PARIS


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seed", range(4))
def test_any_text_is_read_to_its_end(name: str, seed: int) -> None:
    choose = random.Random(seed)
    scraps = [
        *FORMATS[name].keep,
        *"{}[]()<>:=,\"'\\ \n",
        "name",
        "arguments",
        "call:f",
        "f(",
        "é",
        "</parameter>",
        "1",
    ]
    for _ in range(150):
        text = "".join(choose.choice(scraps) for _ in range(choose.randrange(1, 25)))
        assert parsed_loosely(FORMATS[name], [text]) == parsed_loosely(FORMATS[name], list(text))


def parsed_loosely(form: ToolFormat, pieces: Sequence[str]) -> list[str]:
    """Events of an answer in disorder, whose arguments need be no JSON."""
    parser = form.parser(TOOLS)
    events = [*(event for piece in pieces for event in parser.push(piece)), *parser.finish()]
    joined: list[str] = []
    for event in events:
        text = getattr(event, "text", None) or getattr(event, "json_piece", None)
        if text and joined and joined[-1].startswith(type(event).__name__):
            joined[-1] += text
        else:
            joined.append(f"{type(event).__name__} {text or getattr(event, 'name', '')}")
    return joined


# --- which format


@pytest.mark.parametrize("name", TEMPLATES)
def test_at_most_one_format_matches_a_template(name: str) -> None:
    matching = [form for form in tool_formats() if form.matches(TEMPLATES[name])]
    assert len(matching) == (name != "prompted")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("gemma-2", "prompted"), ("gemma-3", "prompted"), ("phi-3.5", "prompted"), ("llama-3.2", "llama"),
        ("mistral-v0.3", "mistral list"), ("phi-4-mini", "phi"), ("training-marks", "prompted"),
        ("ministral-3", "mistral args"), ("olmo-3", "olmo"), ("olmo-3-think", "olmo keys"),
        ("smollm-3", "hermes unwritten"),
    ],
)  # fmt: skip
def test_a_models_template_tells_its_format(template: str, name: str) -> None:
    source = (CHAT_TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    assert type(tool_format(source)) is type(FORMATS[name])
    assert sum(form.matches(source) for form in tool_formats()) == (name != "prompted")


# --- conversations


def conversation(count: int) -> list[dict[str, Any]]:
    """A question, calls with arguments as clients send them, their results, and an answer."""
    calls = [
        {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": dumped({"city": city})},
        }
        for city in ("Rome", "Oslo")[:count]
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"{call['id']}: sun"} for call in reversed(calls)
    ]
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Thanks."},
    ]


LOOP = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
WITH_TOOLS = {
    "hermes": LOOP
    + "{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}{% endfor %}",
    "qwen coder": LOOP + "{% for c in m.tool_calls %}<tool_call><function={{ c.function.name }}>"
    "{% for k, v in c.function.arguments.items() %}<parameter={{ k }}>{{ v }}</parameter>{% endfor %}{% endfor %}"
    "{% endfor %}",
    "lfm": LOOP + "{% for c in m.tool_calls %}<|tool_call_start|>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}",
    "gemma": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
    "{% for c in m.tool_calls %}<|tool_call>call:{{ c.function.name }}{% for k, v in c.function.arguments | dictsort %}"
    "{{ k }}:{{ v }}{% endfor %}<tool_call|>{% endfor %}"
    "{% for r in m.tool_responses %}{{ r.name }}{{ r.response }}{% endfor %}{% endfor %}",
    "harmony": LOOP + "{% for c in m.tool_calls %}<|channel|>to=functions.{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}",
}
OWN = (
    "llama-3.2", "mistral-v0.3", "phi-4-mini", "gemma-2", "gemma-3", "phi-3.5", "ministral-3", "olmo-3",
    "olmo-3-think", "smollm-3",
)  # fmt: skip
SOURCES = WITH_TOOLS | {name: (CHAT_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") for name in OWN}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("count", [1, 2])
def test_tools_calls_and_results_get_into_the_prompt(name: str, count: int) -> None:
    source = SOURCES[name]
    messages, tools = tool_format(source).conversation(conversation(count), TOOLS)
    prompt = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, tools=tools)
    for city in ("Rome", "Oslo")[:count]:
        assert prompt.count(f"call_{city}: sun") == 1
        assert prompt.replace(f"call_{city}: sun", "").count(city) == 1
        assert prompt.index(city) < prompt.index(f"call_{city}: sun")
    assert prompt.count("Forecast.") == 1
    assert prompt.count("Weather?") == prompt.count("Sunny.") == prompt.count("Thanks.") == 1


@pytest.mark.parametrize("name", SOURCES)
def test_a_conversation_without_tools_stays_as_it_is(name: str) -> None:
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert tool_format(SOURCES[name]).conversation(messages, ()) == (messages, None)


@pytest.mark.parametrize("content", ["Be brief.", [{"type": "text", "text": "Be brief."}]])
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_template_without_tools_has_them_described_once(role: str, content: Any) -> None:
    given = [{"role": role, "content": content}, {"role": "user", "content": "Hello"}]
    messages, tools = FORMATS["prompted"].conversation(given, TOOLS)
    assert tools is None
    assert [message["role"] for message in messages] == [role, "user"]
    text = (
        messages[0]["content"] if isinstance(content, str) else "".join(part["text"] for part in messages[0]["content"])
    )
    assert "Be brief." in text
    assert text.count('"get_weather"') == text.count('"ping"') == 1
    assert text.count("<tool_call>") == 1
    assert messages[1] == given[1]


def test_results_without_calls_and_calls_without_results_are_rendered() -> None:
    messages = [*conversation(2)[:2], {"role": "tool", "tool_call_id": "call_Oslo", "content": "sun"}]
    for name in ("llama-3.2", "gemma", "gemma-3"):
        given, tools = tool_format(SOURCES[name]).conversation(messages, TOOLS)
        prompt = ChatTemplate(SOURCES[name], {"bos_token": "<s>"}).render(given, tools=tools)
        assert "Rome" in prompt
        assert prompt.count("sun") == 1


# --- grammars


@pytest.fixture(scope="module")
def pocket() -> Tokenizer:
    return Tokenizer.from_folder(Path(pocket_path[0]))


@pytest.fixture(scope="module", params=["plain", "special"])
def tokenizer(
    request: pytest.FixtureRequest, pocket: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tokenizer]:
    """The pocket model's tokenizer; also one with all delimiters as special tokens."""
    if request.param == "plain":
        yield pocket
        return
    folder = tmp_path_factory.mktemp("special")
    (folder / "tokenizer.json").write_bytes(pocket.definition())
    marks = sorted({mark for form in FORMATS.values() for mark in form.keep})
    (folder / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": marks}), encoding="utf-8")
    yield Tokenizer.from_folder(folder)


STOP = 0


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, [STOP])


ENDS = ('<|"|>', "\n</parameter>\n", '"', "<|end|>", "<|message|>{")


@pytest.mark.parametrize("name", CALLS)
def test_a_grammar_lets_native_calls_through(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    form = FORMATS[name]
    for choice in ("auto", "required", "get_weather", "ping"):
        grammar = compiler.lark(form.grammar(TOOLS, choice, True, compiler.mark))
        for text, found in CALLS[name]:
            ids = tokenizer.encode(text)
            may = choice in ("auto", "required") or {choice} == {called for called, _ in found}
            assert accepts(grammar, ids, STOP) is may


@pytest.mark.parametrize("name", CALLS)
def test_several_calls_are_let_through_only_if_asked_for(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str
) -> None:
    form = FORMATS[name]
    for choice in ("auto", "required"):
        grammar = compiler.lark(form.grammar(TOOLS, choice, False, compiler.mark))
        assert [accepts(grammar, tokenizer.encode(text), STOP) for text, _ in CALLS[name]] == [True, False][
            : len(CALLS[name])
        ]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("right", "wrong"), [("get_weather", "get_whether"), ("city", "town"), ("3", "33"), ("3", '"3"'), ("days", "unit")]
)
def test_a_grammar_refuses_wrong_names_and_arguments(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str, right: str, wrong: str
) -> None:
    form = FORMATS[name]
    text = CALLS[name][0][0]
    changed = text.replace(right, wrong)
    assert changed != text
    for choice in ("required", "auto"):
        if choice == "auto" and name == "llama" and right == "get_weather":
            continue  # an object that calls no tool is text
        grammar = compiler.lark(form.grammar(TOOLS, choice, True, compiler.mark))
        assert not accepts(grammar, tokenizer.encode(changed), STOP)


@pytest.mark.parametrize("name", CALLS)
def test_text_is_let_through_unless_a_call_is_required(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str
) -> None:
    form = FORMATS[name]
    texts = ['Hello {"a": 1}\n\n[x] é'] + (['{"name": "Anna"}', '{"city": 1}'] if name == "llama" else [])
    for text in texts:
        text = f"<|channel|>final<|message|>{text}" if name == "harmony" else text
        for choice, may in (("auto", True), ("required", False), ("ping", False)):
            grammar = compiler.lark(form.grammar(TOOLS, choice, True, compiler.mark))
            assert accepts(grammar, tokenizer.encode(text), STOP) is may


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("parallel", [True, False])
def test_random_answers_call_tools_with_valid_arguments(
    compiler: GrammarCompiler, tokenizer: Tokenizer, name: str, parallel: bool
) -> None:
    form = FORMATS[name]
    grammar = compiler.lark(form.grammar(TOOLS, "required", parallel, compiler.mark))
    for seed in range(4):
        ids = walk(grammar, tokenizer, [STOP], seed, ends=ENDS)
        stream = TextStream(tokenizer, keep=form.keep)
        calls = parsed(form, [*map(stream.push, ids), stream.finish()])
        called = [(kind, value) for kind, value in calls if kind not in ("text", "reasoning")]
        assert called
        assert parallel or len(called) == 1
        assert name == "harmony" or called == calls
        for kind, value in called:
            jsonschema.validate(value, SCHEMAS[kind])


ODD = {name: {"type": "string"} for name in ("first name", "größe", "x-y", "_", "名前")}
ODD_SCHEMA = {"type": "object", "properties": ODD, "required": [*ODD], "additionalProperties": False}
ODD_TOOLS = read_tools([{"function": {"name": "a.b/c:d-e", "parameters": ODD_SCHEMA}}])


@pytest.mark.parametrize("name", CALLS)
def test_odd_names_come_back_as_they_are(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    form = FORMATS[name]
    grammar = compiler.lark(form.grammar(ODD_TOOLS, "required", False, compiler.mark))
    stream = TextStream(tokenizer, keep=form.keep)
    pieces = [*map(stream.push, walk(grammar, tokenizer, [STOP], 1, ends=ENDS)), stream.finish()]
    parser = form.parser(ODD_TOOLS)
    found = found_in([*(event for piece in pieces for event in parser.push(piece)), *parser.finish()])
    assert set(dict(found)["a.b/c:d-e"]) == set(ODD)


@pytest.mark.parametrize("name", CALLS)
def test_a_schema_that_contains_itself_is_followed(compiler: GrammarCompiler, name: str) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "ok": {"type": "boolean"}}}
    schema = {"type": "object", "properties": {"top": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    tools = read_tools([{"function": {"name": "f", "parameters": schema}}])
    assert compiler.lark(FORMATS[name].grammar(tools, "required", True, compiler.mark))


def test_a_tool_that_is_not_there_cannot_be_chosen() -> None:
    for form in FORMATS.values():
        with pytest.raises(UsageError, match="no tool 'nothing'"):
            form.grammar(TOOLS, "nothing", True, json.dumps)


DEEPLY: dict[str, Any] = {}
for _ in range(100):
    DEEPLY = {"type": "object", "properties": {"a": DEEPLY}}


@pytest.mark.parametrize(
    "definitions",
    [
        [{}], [{"type": "function"}], [{"function": {"name": ""}}], [{"function": {"name": 'a"b'}}], [1],
        [{"function": {"name": "f", "parameters": []}}], [{"function": {"name": "f", "parameters": {"type": "array"}}}],
        [{"function": {"name": "f", "parameters": DEEPLY}}], [{"function": {"name": "f"}}] * 2,
        [{"function": {"name": "f" * 300}}],
    ],
)  # fmt: skip
def test_definitions_that_are_none_are_refused(definitions: Any) -> None:
    with pytest.raises(UsageError):
        read_tools(definitions)
