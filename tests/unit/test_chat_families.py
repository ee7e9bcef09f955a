"""Conversations of the models that people run: rendered as in transformers, their answers held and read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import HalfbyteError, TemplateError, UsageError
from halfbyte.pocket import __path__ as pocket_path
from halfbyte.text import Tokenizer
from halfbyte.text.files import read_tokenizer_files
from halfbyte.text.grammar import GrammarCompiler
from halfbyte.text.reasoning import reasoning_format
from halfbyte.text.template import ChatTemplate
from halfbyte.text.tools import Event, TextPiece, harmony, llama, mistral, prompted, read_tools, tool_format
from tests.unit.families import FAMILIES, SPECIAL, expected, installed, ours, outcome, source
from tests.unit.masks import accepts
from tests.unit.test_tools import cut, found_in

USER = {"role": "user", "content": " Weather in <b>'Paris'</b>?\n"}
SYSTEM = {"role": "system", "content": 'Be "brief".'}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Forecast of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name."},
                "days": {"type": "integer", "description": "How many."},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "Degrees."},
                "hourly": {"type": "boolean", "description": "Hour by hour."},
            },
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": 'Saint-É "x"', "days": 3, "hourly": True}


def call(name: str = "get_weather", arguments: Any = ARGUMENTS, call_id: str = "abcdef123") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": '{"sun": true}'}
ANSWER = {"role": "assistant", "content": "It is sunny.\n"}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm,\nwell."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "system alone": [SYSTEM],
    "turns": [USER, ANSWER, USER],
    "system and turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "two users": [USER, USER],
    "assistant last": [USER, ANSWER],
    "late system": [USER, ANSWER, SYSTEM, USER],
    "odd role": [USER, {"role": "wizard", "content": "Abracadabra"}],
    "developer": [{"role": "developer", "content": "Be brief."}, USER],
    "thoughts": [USER, THOUGHT, USER],
    "thoughts last": [USER, THOUGHT],
    "thoughts in text": [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}, USER],
    "call": [USER, {"role": "assistant", "content": "", "tool_calls": [call()]}],
    "call without content": [USER, {"role": "assistant", "content": None, "tool_calls": [call()]}, RESULT],
    "call and result": [SYSTEM, USER, {"role": "assistant", "content": "I ask.", "tool_calls": [call()]}, RESULT],
    "call, result and answer": [
        USER, {"role": "assistant", "content": "", "tool_calls": [call()]}, RESULT, ANSWER, USER
    ],
    "two calls": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call(), call("ping", {}, "bcdefg234")]},
        RESULT,
        {**RESULT, "tool_call_id": "bcdefg234", "name": "ping", "content": "pong"},
    ],
    "thought call": [
        USER, {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call()]}, RESULT
    ],
}  # fmt: skip
VARIABLES: tuple[dict[str, Any] | None, ...] = (
    None, {"enable_thinking": True}, {"enable_thinking": False}, {"reasoning_effort": "low"}, {"thinking": True},
    {"preserve_thinking": True},
)  # fmt: skip


def expected_of_clients(messages: list[dict[str, Any]], text: str, wanted: str, **options: Any) -> str:
    """What transformers makes of calls that it refused, given with an empty content, and arguments as text.

    A template that does not write calls is no better off with them.
    """
    changed: list[dict[str, Any]] = json.loads(json.dumps(messages))
    for as_text in (False, True):
        for each in changed:
            each["content"] = each["content"] or ""
            for made in each.get("tool_calls", ()) if as_text else ():
                made["function"]["arguments"] = json.dumps(made["function"]["arguments"], ensure_ascii=False)
        found = expected(changed, text, **options)
        if ARGUMENTS["city"][:7] in found:
            return found
    return wanted


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_a_conversation_is_rendered_or_refused_as_by_transformers(name: str, kind: str) -> None:
    text, messages = source(name), CONVERSATIONS[kind]
    for tools in (None, [WEATHER]):
        for prompt in (True, False):
            options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt}
            for variables in VARIABLES if prompt else (None,):
                found = outcome(text, messages, variables=variables, **options)
                wanted = expected(messages, text, variables=variables, **options)
                if wanted.startswith("refused: ") and any(each.get("tool_calls") for each in messages):
                    wanted = expected_of_clients(messages, text, wanted, variables=variables, **options)
                assert found == wanted


CONTINUED: dict[str, list[dict[str, Any]]] = {
    "answer": [USER, {"role": "assistant", "content": "It is"}],
    "space at the end": [SYSTEM, USER, ANSWER, USER, {"role": "assistant", "content": "It is  "}],
    "thoughts": [USER, {"role": "assistant", "content": "It is", "reasoning_content": "Hm."}],
    "call": [USER, {"role": "assistant", "content": "I ask", "tool_calls": [call()]}],
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", CONTINUED)
def test_a_message_is_continued_as_by_transformers(name: str, kind: str) -> None:
    text, messages = source(name), CONTINUED[kind]
    for part in (True, "reasoning_content") if kind == "thoughts" else (True,):
        found = outcome(text, messages, continue_final_message=part)
        wanted = expected(messages, text, continue_final_message=part)
        if not wanted.startswith("refused: "):
            assert found == wanted
        elif "concatenate str" not in wanted:  # a template that wants arguments as text, which it is given
            assert found.startswith("refused: ")


def test_only_a_text_is_continued() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m.role }}{% endfor %}", SPECIAL)
    with pytest.raises(UsageError, match="no text under 'content'"):
        template.render([{"role": "assistant", "tool_calls": [call()]}], continue_final_message=True)
    with pytest.raises(TemplateError, match="cannot be continued"):
        ChatTemplate("{{ messages[0].role }}", SPECIAL).render([ANSWER], continue_final_message=True)
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    assert template.render(parts, continue_final_message=True) == "It is"


@pytest.mark.parametrize("variables", [{"messages": []}, {"add_generation_prompt": True}, {1: 2}, ["x"], "x"])
def test_variables_that_cannot_be_set_are_refused(variables: Any) -> None:
    with pytest.raises(HalfbyteError):
        ChatTemplate("x", SPECIAL).render([USER], variables=variables)


# --- calls as the templates print them

CALLED = {"city": 'Saint-É "x"', "days": 3, "unit": "C", "hourly": True}
NOTHING = {"type": "object", "properties": {}}
PING = {"type": "function", "function": {"name": "ping", "description": "A sign of life.", "parameters": NOTHING}}
TOOLS = read_tools([WEATHER, PING])
PRINTING = (
    "deepseek_r1_distill", "deepseekv3", "deepseek-v3.1:latest", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4",
    "gemma4_v5", "gptoss", "granite3-dense:2b", "granite3.1-moe:1b", "granite3.2:8b", "granite3.3:2b", "granite4:350m",
    "granite4:latest", "hermes3:70b", "lfm2", "lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "llama3_1", "llama3_2",
    "ministral-3", "nemotron_3_nano", "nemotron_3_5_lightning", "qwq:32b",
    "olmo-3", "olmo-3-think", "phi4-mini:3.8b", "qwen2_5", "qwen3", "qwen3_5_nothink",
    "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507", "qwen3-coder:30b", "smollm-3",
)  # fmt: skip
"""Families whose templates know tools; the others are told of them in a message."""
POCKET = Tokenizer.from_folder(Path(pocket_path[0]))
STOP = 0


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(POCKET, [STOP])


ENDS = re.compile(
    r"(\s|</s>|<\|call\|>|<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<\|end_of_text\|>|<turn\|>|<\|tool_response>|"
    r"<｜end▁of▁sentence｜>)*$"  # noqa: RUF001 - DeepSeek's own
)


def printed(name: str, messages: list[dict[str, Any]], made: list[dict[str, Any]]) -> str:
    """What the template writes after the prompt for an answer with these calls."""
    text = source(name)
    form = tool_format(text)
    answer = {"role": "assistant", "content": "", "tool_calls": made}
    options: dict[str, Any] = {"variables": {"enable_thinking": False}}
    before, tools = form.conversation(messages, TOOLS)
    base = outcome(text, before, tools=tools, add_generation_prompt=False, **options)
    prompt = outcome(text, before, tools=tools, **options)
    whole = outcome(
        text, form.conversation([*messages, answer], TOOLS)[0], tools=tools, add_generation_prompt=False, **options
    )
    base = base.removesuffix(SPECIAL["eos_token"])
    heads, written = re.sub(r"<think>\s*$", "", prompt.removeprefix(base)), whole.removeprefix(base)
    assert len(written) < len(whole)
    same = next((place for place, pair in enumerate(zip(heads, written, strict=False)) if len({*pair}) > 1), len(heads))
    return ENDS.sub("", written[same:]).lstrip("\n")


@pytest.mark.parametrize("name", PRINTING)
@pytest.mark.parametrize("count", [1, 2])
def test_calls_that_a_template_prints_are_read_and_let_through(
    name: str, count: int, compiler: GrammarCompiler
) -> None:
    text = source(name)
    form, reasoning = tool_format(text), reasoning_format(text)
    if count == 2 and type(form) in (llama.BareJson, harmony.Channels):
        return  # these models make one call in a turn
    made = [call(arguments=CALLED), call("ping", {}, "bcdefg234")][:count]
    answer = printed(name, [SYSTEM, USER], made)
    wanted = [("get_weather", CALLED), ("ping", {})][:count]
    for pieces in ([answer], list(answer), *(cut(answer, seed) for seed in range(5))):
        events: list[Event] = [TextPiece(piece) for piece in pieces]
        for parser in (*([reasoning.parser("")] if reasoning else []), form.parser(TOOLS)):
            texts = [event.text for event in events if isinstance(event, TextPiece)]
            events = [*(event for each in texts for event in parser.push(each)), *parser.finish()]
        assert found_in(events) == wanted
    for choice in ("auto", "required"):
        grammar = compiler.lark(form.grammar(TOOLS, choice, True, compiler.mark))
        assert accepts(grammar, POCKET.encode(answer), STOP)


@pytest.mark.parametrize("name", PRINTING)
def test_tools_calls_and_results_get_into_the_prompt_once(name: str) -> None:
    text = source(name)
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call(arguments=json.dumps({"city": "Rome"}))]},
        {**RESULT, "content": "20 degrees"},
        ANSWER,
        {"role": "user", "content": "Thanks."},
    ]
    given, tools = tool_format(text).conversation(messages, TOOLS)
    prompt = outcome(text, given, tools=tools)
    assert not prompt.startswith("refused: ")
    for once in ("Forecast of a city.", "Rome", "20 degrees", "It is sunny.", "Thanks."):
        assert prompt.count(once) == 1
    assert prompt.index("Forecast") < prompt.index("Rome") < prompt.index("20 degrees") < prompt.index("Thanks.")


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PRINTING])
def test_other_templates_know_no_tools(name: str) -> None:
    assert type(tool_format(source(name))) in (prompted.Prompted, mistral.JsonList) or name in ("glm4moe",)


# --- the marks of thoughts

THINKING = {
    "qwen3": ("<think>", "</think>"), "qwen3_5_think": ("<think>", "</think>"), "qwen3_8": ("<think>", "</think>"),
    "smollm-3": ("<think>", "</think>"), "lfm2_2_5": ("<think>", "</think>"), "deepseekv3": ("<think>", "</think>"),
    "deepseek_r1_distill": ("<think>", "</think>"), "deepseek-v3.1:latest": ("<think>", "</think>"),
    "granite3.3:2b": ("<think>", "</think>"), "nemotron_3_nano": ("<think>", "</think>"),
    "phi4-reasoning:14b": ("<think>", "</think>"), "qwq:32b": ("<think>", "</think>"),
    "olmo-3-think": ("<think>", "</think>"), "gemma4": ("<|channel>thought", "<channel|>"),
    "gemma4_v2": ("<|channel>thought", "<channel|>"), "gemma4_v5": ("<|channel>thought", "<channel|>"),
    "ministral-3": ("[THINK]", "[/THINK]"),
}  # fmt: skip


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("thinks", [None, True, False])
def test_thoughts_are_told_from_the_answer_after_each_prompt(name: str, thinks: bool | None) -> None:
    """Whether the prompt opens the thoughts, ends them, or leaves both to the model."""
    text, (opening, close) = source(name), THINKING[name]
    reasoning = reasoning_format(text)
    assert reasoning is not None
    prompt = outcome(
        text, [USER], variables=None if thinks is None else {"enable_thinking": thinks, "thinking": thinks}
    )
    thought = f"\nHm, {opening}.\n{close}"
    opened = prompt.rstrip().endswith(opening)
    if prompt.rstrip().endswith(close):
        answer, found = "Yes.", [("text", "Yes.")]
    else:
        answer = ("" if opened else opening) + thought + "\n\nYes."
        found = [("reasoning", f"Hm, {opening}."), ("text", "Yes.")]
    for pieces in ([answer], list(answer), *(cut(answer, seed) for seed in range(10))):
        parser = reasoning.parser(prompt)
        events = [event for piece in pieces for event in parser.push(piece)]
        assert found_in([*events, *parser.finish()]) == found


# --- what ends an answer

ENDING = {
    "gemma2": ("gemma", "<end_of_turn>"), "gemma3": ("gemma3", "<end_of_turn>"), "qwen2_5": ("qwen2_5", "<|im_end|>"),
    "qwen3": ("qwen3", "<|im_end|>"), "llama3_2": ("llama3_2", "<|eot_id|>"), "llama3": ("llama3", "<|eot_id|>"),
    "gptoss": ("gptoss", "<|call|>"),
    "deepseek_v3": ("deepseekv3", "<｜end▁of▁sentence｜>"),  # noqa: RUF001 - DeepSeek's own
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", ENDING)
def test_the_end_of_a_turn_ends_an_answer_whatever_the_files_name(tokenizer: str) -> None:
    """Be it in generation_config.json alone, in tokenizer_config.json alone, or only in the chat template."""
    name, end = ENDING[tokenizer]
    files = read_tokenizer_files(installed() / tokenizer)
    unnamed = {key: text for key, text in files.special_tokens.items() if key != "eos_token"}
    alone = Tokenizer(replace(files, special_tokens=unnamed, chat_template=None, templates={}))
    by_template = Tokenizer(replace(files, special_tokens=unnamed, chat_template=source(name), templates={}))
    assert alone.with_eos([7]) == (7,)
    assert by_template.token_id(end) in by_template.with_eos([7])
    assert {7, ours(tokenizer).eos_token_id} <= set(ours(tokenizer).with_eos([7]))
