"""What a model thinks is told from its answer, and an answer's grammar begins where the thoughts end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.pocket import __path__ as pocket_path
from halfbyte.text import TextStream, Tokenizer
from halfbyte.text.grammar import GrammarCompiler
from halfbyte.text.reasoning import ReasoningFormat, reasoning_format
from halfbyte.text.tools import tool_format
from tests.unit.masks import accepts, walk
from tests.unit.test_tools import TOOLS, Found, cut, found_in

TEMPLATES = {
    "think": "{{ m.content.split('</think>')[-1] }}",
    "brackets": "[THINK]{{ m.thinking }}[/THINK]",
    "thought channel": "<|channel>thought\n<channel|>",
}
FORMATS = {name: reasoning_format(source) for name, source in TEMPLATES.items()}
CHANNELS = "<|start|>assistant<|channel|>analysis<|message|> commentary to=functions. {{ name }}"
STOP = 0


def form_of(name: str) -> ReasoningFormat:
    form = FORMATS[name]
    assert form is not None
    return form


def parsed(form: ReasoningFormat, prompt: str, pieces: list[str]) -> Found:
    parser = form.parser(prompt)
    return found_in([*(event for piece in pieces for event in parser.push(piece)), *parser.finish()])


@pytest.fixture(scope="module", params=["plain", "special"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The pocket model's; also one with all delimiters as special tokens."""
    pocket = Tokenizer.from_folder(Path(pocket_path[0]))
    if request.param == "plain":
        return pocket
    folder = tmp_path_factory.mktemp("reasoning")
    (folder / "tokenizer.json").write_bytes(pocket.definition())
    marks = sorted({mark for name in FORMATS for mark in form_of(name).keep})
    (folder / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": marks}), encoding="utf-8")
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, [STOP])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("prompt", "answer", "found"),
    [
        ("<user>", "OPEN\nHm, OPEN.\n\nCLOSE\n\nYes.\n", [("reasoning", "Hm, OPEN."), ("text", "Yes.\n")]),
        ("<user>", "\n OPENHm.CLOSEYes CLOSE", [("reasoning", "Hm."), ("text", "Yes CLOSE")]),
        ("<user>", " Yes. OPENHm.CLOSE", [("text", " Yes. OPENHm.CLOSE")]),
        ("<user>", "OPENHm", [("reasoning", "Hm")]),
        ("<user>", "OPEN\n\nCLOSE\n\nYes.", [("text", "Yes.")]),
        ("<user>", "<", [("text", "<")]),
        ("<user>OPEN\n", "\nHm.\nCLOSE\n\nYes.", [("reasoning", "Hm."), ("text", "Yes.")]),
        ("<user>OPENOPEN\n", "Hm. OPEN", [("reasoning", "Hm. OPEN")]),
        ("<user>OPEN\n\nCLOSE\n\n", "OPEN Yes.", [("text", "OPEN Yes.")]),
        ("OPENHm.CLOSE<user>", "OPENHm.CLOSEYes.", [("reasoning", "Hm."), ("text", "Yes.")]),
        ("what is OPEN?<user>", "Yes.", [("text", "Yes.")]),
    ],
)
def test_thoughts_are_told_from_the_answer_however_it_is_cut(name: str, prompt: str, answer: str, found: Found) -> None:
    form = form_of(name)
    prompt, answer = (text.replace("OPEN", form.open).replace("CLOSE", form.close) for text in (prompt, answer))
    expected = [(kind, text.replace("OPEN", form.open).replace("CLOSE", form.close)) for kind, text in found]
    assert parsed(form, prompt, [answer]) == expected
    assert parsed(form, prompt, list(answer)) == expected
    for seed in range(20):
        assert parsed(form, prompt, cut(answer, seed)) == expected


CALL = '<|channel|>commentary to=functions.ping <|constrain|>json<|message|>{"a": "<|end"}<|call|>'
RECIPIENT_FIRST = ' to=functions.ping<|channel|>commentary json<|message|>{"a": 1}<|call|>'
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>Yes.<|return|>", [("reasoning", "Hm."), ("text", "Yes.")]),
        (THOUGHT + CALL, [("reasoning", "Hm."), ("ping", {"a": "<|end"})]),
        (CALL, [("ping", {"a": "<|end"})]),
        (RECIPIENT_FIRST, [("ping", {"a": 1})]),
        (THOUGHT + RECIPIENT_FIRST, [("reasoning", "Hm."), ("ping", {"a": 1})]),
        (f"{RECIPIENT_FIRST}<|start|>assistant{RECIPIENT_FIRST}", [("ping", {"a": 1}), ("ping", {"a": 1})]),
        (" to be", [("text", " to be")]),
        (
            f"<|channel|>commentary<|message|>I ask.<|end|><|start|>assistant{CALL}",
            [("text", "I ask."), ("ping", {"a": "<|end"})],
        ),
        ("Yes.", [("text", "Yes.")]),
        ("<|channel|>final<|message|>Y", [("text", "Y")]),
    ],
)
def test_channels_are_told_apart(answer: str, found: Found) -> None:
    form, tools = reasoning_format(CHANNELS), tool_format(CHANNELS)
    assert form is not None
    for pieces in ([answer], list(answer), *(cut(answer, seed) for seed in range(20))):
        first, second = form.parser(""), tools.parser(TOOLS)
        events = [event for piece in pieces for event in first.push(piece)] + first.finish()
        told = [event for event in events if type(event).__name__ == "ReasoningPiece"]
        text = [event.text for event in events if type(event).__name__ == "TextPiece"]
        after = [event for piece in text for event in second.push(piece)] + second.finish()
        assert found_in([*told, *after]) == found


def test_templates_have_the_format_of_their_thoughts() -> None:
    found = {
        path.stem: form.open
        for path in (Path(__file__).parent / "chat_templates").glob("*.jinja")
        if (form := reasoning_format(path.read_text(encoding="utf-8")))
    }
    assert found == {"ministral-3": "[THINK]", "olmo-3-think": "<think>", "smollm-3": "<think>"}


def test_the_vocabulary_tells_it_where_the_template_does_not() -> None:
    assert reasoning_format("", {"<think>", "</think>"}.__contains__) == FORMATS["think"]
    assert reasoning_format("", {"<think>"}.__contains__) is None


@pytest.mark.parametrize("name", FORMATS)
def test_the_grammar_begins_where_the_thoughts_end(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    form = form_of(name)

    def may(prompt: str, answer: str) -> bool:
        grammar = compiler.json_object(before=form.before(compiler.mark, prompt))
        return accepts(grammar, tokenizer.encode(answer), STOP)

    thoughts = f"\nHm, {{ or [?\n{form.close}\n\n"
    assert may("<user>", form.open + thoughts + '{"a": 1}')
    assert may("<user>", '{"a": 1}')
    assert not may("<user>", form.open + thoughts + "Yes.")
    assert not may("<user>", "Hm.")
    assert may(f"<user>{form.open}\n", thoughts + '{"a": 1}')
    assert not may(f"<user>{form.open}\n", '{"a": 1}')
    assert may(f"<user>{form.open}\n\n{form.close}\n\n", '{"a": 1}')
    assert not may(f"<user>{form.open}\n\n{form.close}\n\n", form.open + thoughts + '{"a": 1}')


@pytest.mark.parametrize("name", FORMATS)
def test_no_delimiter_gets_into_a_held_answer(compiler: GrammarCompiler, tokenizer: Tokenizer, name: str) -> None:
    form = form_of(name)
    prompt = f"<user>{form.open}"
    grammar = compiler.json_object(before=form.before(compiler.mark, prompt))
    for seed in range(5):
        ids = walk(grammar, tokenizer, [STOP], seed, ends=[form.close, '"'])
        stream = TextStream(tokenizer, keep=form.keep)
        found = parsed(form, prompt, [*map(stream.push, ids), stream.finish()])
        assert isinstance(json.loads(found[-1][1]), dict)


def test_calls_follow_thoughts(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    form, tools = form_of("think"), tool_format("<tool_call>")
    call = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    for choice in ("auto", "required", "ping"):
        lark = tools.grammar(TOOLS, choice, True, compiler.mark)
        grammar = compiler.lark(lark, before=form.before(compiler.mark, "<user>"))
        assert accepts(grammar, tokenizer.encode(f"<think>\nHm.\n</think>\n\n{call}"), STOP)
        assert accepts(grammar, tokenizer.encode("<think>\nHm.\n</think>\n\nYes."), STOP) is (choice == "auto")


@pytest.mark.parametrize(
    "answer", [f'{THOUGHT}<|channel|>final<|message|>{{"a": 1}}', '<|channel|>final<|message|>{"a": 1}']
)
def test_a_channels_grammar_begins_with_its_message(
    compiler: GrammarCompiler, tokenizer: Tokenizer, answer: str
) -> None:
    form = reasoning_format(CHANNELS)
    assert form is not None
    grammar = compiler.json_object(before=form.before(compiler.mark, ""))
    assert accepts(grammar, tokenizer.encode(answer), STOP)
    assert not accepts(grammar, tokenizer.encode(answer + "x"), STOP)
    assert not accepts(grammar, tokenizer.encode('{"a": 1}'), STOP)
