"""An answer's thoughts, text and calls are asked for, held and read together, in the form of each template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.pocket import __path__ as pocket_path
from halfbyte.text import Tokenizer
from halfbyte.text.forms import JsonSchema
from halfbyte.text.grammar import GrammarCompiler
from halfbyte.text.tools import read_tools
from halfbyte.text.turn import Turn
from tests.unit.masks import accepts
from tests.unit.test_tools import cut, found_in

STOP = 0
TOOLS = read_tools([{
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}},
                                               "required": ["a"], "additionalProperties": False}},
}])  # fmt: skip
FORM = JsonSchema({"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
                   "additionalProperties": False})  # fmt: skip
HELLO = [{"role": "user", "content": "Hello"}]
TAGGED = "<tool_call> {{ tools }}"
CHANNELS = "<|channel|>analysis<|message|> commentary to=functions. {{ name }}"
ASIDE = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
CASES = {
    "tagged": (TAGGED, "", CALL, ""),
    "thinking": (TAGGED + "</think><think>", "Hm.</think>\n\n", CALL, ""),
    "channels": (
        CHANNELS, ASIDE, '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
        "<|channel|>final<|message|>",
    ),
}  # fmt: skip


def tokenizer(folder: Path, template: str) -> Tokenizer:
    """The pocket model's, with a template."""
    pocket = Tokenizer.from_folder(Path(pocket_path[0]))
    (folder / "tokenizer.json").write_bytes(pocket.definition())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_a_call_or_a_text_of_the_form(tmp_path: Path, name: str) -> None:
    template, thought, call, head = CASES[name]
    words = tokenizer(tmp_path, template)
    compiler = GrammarCompiler(words, [STOP])

    def may(turn: Turn, form: JsonSchema | None, answer: str) -> bool:
        grammar = turn.grammar(compiler, form)
        assert grammar is not None
        assert turn.is_held(form)
        return accepts(grammar, words.encode_inside(answer, parse_special=True), STOP)

    valid, text = f'{head}{{"x": true}}', f"{head}Hello."
    free, required = Turn(words, HELLO, TOOLS), Turn(words, HELLO, TOOLS, required=True)
    alone = Turn(words, HELLO)
    answers = (call, valid, text)
    assert [may(free, None, thought + answer) for answer in answers] == [True, True, True]
    assert [may(free, FORM, thought + answer) for answer in answers] == [True, True, False]
    for form in (None, FORM):
        assert [may(required, form, thought + answer) for answer in answers] == [True, False, False]
    assert [may(alone, FORM, thought + answer) for answer in answers] == [False, True, False]
    assert alone.grammar(compiler) is None
    assert not alone.is_held(None)


@pytest.mark.parametrize("name", CASES)
def test_thoughts_and_calls_are_read_however_they_are_cut(tmp_path: Path, name: str) -> None:
    template, thought, call, head = CASES[name]
    words = tokenizer(tmp_path, template)
    turn = Turn(words, HELLO, TOOLS)
    thoughts = [("reasoning", "Hm.")] if thought else []
    for answer, found in ((call, ("add", {"a": 1})), (f"{head}Hi.", ("text", "Hi."))):
        for seed in range(10):
            parser = turn.parser()
            events = [event for piece in cut(thought + answer, seed) for event in parser.push(piece)]
            assert found_in([*events, *parser.finish()]) == [*thoughts, found]


def test_without_tools_and_thoughts_text_is_text(tmp_path: Path) -> None:
    words = tokenizer(tmp_path, TAGGED)
    turn = Turn(words, HELLO)
    assert (turn.is_plain, turn.keep, turn.tools, list(turn.messages)) == (True, (), None, HELLO)
    assert not Turn(words, HELLO, TOOLS).is_plain
    assert not Turn(tokenizer(tmp_path, "</think>"), HELLO).is_plain


def test_what_else_the_template_reads_decides_whether_thoughts_are_open(tmp_path: Path) -> None:
    words = tokenizer(tmp_path, "{{ messages[0].content }}{% if think %}<think>{% else %}<think></think>{% endif %}")
    for think, found in ((True, [("reasoning", "Hm."), ("text", "Yes.")]), (False, [("text", "Hm.</think>Yes.")])):
        parser = Turn(words, HELLO, variables={"think": think}).parser()
        assert found_in([*parser.push("Hm.</think>Yes."), *parser.finish()]) == found
