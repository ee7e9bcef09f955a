"""Answers under a grammar are what the grammar says, whatever tokens are chosen, with every kind of tokenizer."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import rfc3339_validator

from halfbyte.checkpoint.gguf.file import GgufFile
from halfbyte.checkpoint.gguf.tokenizer import tokenizer_files
from halfbyte.errors import UsageError
from halfbyte.pocket import __path__ as pocket_path
from halfbyte.text import TextStream, Tokenizer
from halfbyte.text.grammar import GrammarCompiler
from tests.unit.json_schemas import closed, schemas
from tests.unit.masks import accepts, allowed, walk
from tests.unit.vocab import (
    gemma_definition,
    small_byte_level_definition,
    small_spm_definition,
    write_folder,
)

SCHEMAS = list(schemas())
POCKET_STOPS = (0, 4)
DEFINITIONS = {
    "byte-level": small_byte_level_definition,
    "sentencepiece": small_spm_definition,
    "gemma": gemma_definition,
}
RECORD = closed(name={"type": "string"}, größe={"enum": ["S", "日本", 3, None]}, tags={"type": "array", "maxItems": 3})

FORMATS = jsonschema.FormatChecker()


@FORMATS.checks("date-time")
def is_date_time(text: str) -> bool:
    """RFC 3339, whose minutes may have 61 seconds and whose years begin with 0."""
    return rfc3339_validator.validate_rfc3339(re.sub("^0000", "2000", text.upper()).replace(":60", ":59"))


@FORMATS.checks("time")
def is_time(text: str) -> bool:
    return is_date_time(f"2000-01-01T{text}")


@pytest.fixture(scope="module")
def pocket() -> Tokenizer:
    return Tokenizer.from_folder(Path(pocket_path[0]))


@pytest.fixture(scope="module")
def compiler(pocket: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(pocket, POCKET_STOPS)


@pytest.fixture(scope="module", params=[*DEFINITIONS, "gpt-2.gguf", "llama-spm.gguf", "phi-3.gguf"])
def tokenizer(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tokenizer]:
    name = request.param
    if name in DEFINITIONS:
        yield Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("grammar"), DEFINITIONS[name]()))
    else:
        path = shared / "tokenizers" / f"ggml-vocab-{name}"
        yield Tokenizer(tokenizer_files(path, GgufFile(path).metadata))


def stop_of(tokenizer: Tokenizer) -> int:
    return max(tokenizer.special_ids)


@pytest.mark.parametrize("schema", SCHEMAS, ids=[json.dumps(schema)[:60] for schema in SCHEMAS])
def test_random_answers_are_valid_by_their_schema(
    compiler: GrammarCompiler, pocket: Tokenizer, schema: dict[str, Any]
) -> None:
    grammar = compiler.json_schema(schema)
    judge = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    for seed in range(2):
        text = pocket.decode(walk(grammar, pocket, POCKET_STOPS, seed), skip_special_tokens=False)
        judge.validate(json.loads(text))


def test_there_are_at_least_200_schemas_and_each_is_one() -> None:
    assert len({json.dumps(schema) for schema in SCHEMAS}) >= 200
    for schema in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema)


def test_random_answers_are_valid_with_every_kind_of_tokenizer(tokenizer: Tokenizer) -> None:
    stop = stop_of(tokenizer)
    grammar = GrammarCompiler(tokenizer, [stop]).json_schema(RECORD)
    for seed in range(5):
        ids = walk(grammar, tokenizer, [stop], seed)
        stream = TextStream(tokenizer)
        text = "".join(map(stream.push, ids)) + stream.finish()
        jsonschema.validate(json.loads(text), RECORD)


def test_what_a_tokenizer_makes_of_a_valid_answer_is_let_through(tokenizer: Tokenizer) -> None:
    stop = stop_of(tokenizer)
    compiler = GrammarCompiler(tokenizer, [stop])
    value = {"name": "hello world 🦙 é", "größe": "日本", "tags": ["the", 1.5, None]}
    text = json.dumps(value, ensure_ascii=False)
    ids = tokenizer.encode_inside(text)
    assert accepts(compiler.json_schema(RECORD), ids, stop)
    assert accepts(compiler.json_object(), ids, stop)
    assert not accepts(compiler.json_schema(closed(name={"type": "integer"})), ids, stop)
    assert not accepts(compiler.regex("[^🦙]*"), ids, stop)


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler) -> None:
    assert compiler.json_schema(RECORD) is compiler.json_schema(dict(RECORD))
    assert compiler.json_schema(RECORD) is not compiler.json_schema(RECORD, lenient=True)


def test_answers_of_one_grammar_do_not_know_each_other(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    grammar = compiler.regex("ab|cd")
    first, second = grammar.start(), grammar.start()
    first.accept(pocket.encode("a")[0])
    assert set(map(pocket.token, allowed(second))) == {"a", "ab", "c", "cd"} & set(
        map(pocket.token, range(pocket.vocab_size))
    )
    assert "c" not in set(map(pocket.token, allowed(first)))


def test_the_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer) -> None:
    table = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size + 3)]
    assert table[-3:] == [b""] * 3
    for text in ("hello the world", " é  日本 🦙", "a\n\n b\t", "<|user|>"):
        ids = tokenizer.encode_inside(text)
        assert b"".join(table[token_id] for token_id in ids) == text.encode()


def test_an_answer_may_end_exactly_where_the_grammar_may(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    constraint = compiler.regex("ab?").start()
    assert not set(POCKET_STOPS) & set(allowed(constraint))
    assert not constraint.may_end
    constraint.accept(pocket.encode("a")[0])
    assert set(POCKET_STOPS) <= set(allowed(constraint))
    assert constraint.may_end
    constraint.accept(POCKET_STOPS[1])
    assert set(allowed(constraint)) == set(POCKET_STOPS)
    constraint.accept(pocket.encode("z")[0])
    assert set(allowed(constraint)) == set(POCKET_STOPS)


def test_special_tokens_come_only_where_a_grammar_names_them(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    special = pocket.special_ids.difference(POCKET_STOPS)
    assert not special & set(allowed(compiler.regex("(?s:.*)").start()))
    rule = f"start: {compiler.mark('<|user|>')} {compiler.mark('<no token>')}"
    assert accepts(compiler.lark(rule), pocket.encode("<|user|><no token>"), 4)
    assert not accepts(compiler.lark(rule), pocket.encode("<|user|><no token>", parse_special=False), 4)


def test_each_answer_has_its_own_place_in_the_grammar(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    grammar = compiler.regex("[ab]{2}")
    first, second = grammar.start(), grammar.start()
    first.accept(pocket.encode("a")[0])
    assert pocket.encode("a")[0] in allowed(second)
    first.accept(pocket.encode("b")[0])
    assert set(allowed(first)) == set(POCKET_STOPS)


def test_what_comes_before_an_answer_is_free(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    before = f"before: /(?s:.*)/ {compiler.mark('<|assistant|>')} /[ \\n]{{0,2}}/"
    for grammar in (compiler.json_object(before=before), compiler.lark('start: "{" "}"', before=before)):
        assert accepts(grammar, pocket.encode("Well, {<|assistant|>\n{}"), 4)
        assert not accepts(grammar, pocket.encode("{}"), 4)
        assert not accepts(grammar, pocket.encode("Well<|assistant|>{}z"), 4)
    assert accepts(compiler.regex("a+", before=before), pocket.encode("<|assistant|>aa"), 4)


@pytest.mark.parametrize("vocab_size", [8192, 8193, 8224, 9000])
def test_masks_are_as_wide_as_the_models_logits(pocket: Tokenizer, vocab_size: int) -> None:
    constraint = GrammarCompiler(pocket, [0, 10**6], vocab_size=vocab_size).json_object().start()
    words = constraint.words()
    assert words.dtype == np.uint32
    assert words.shape == (-(-vocab_size // 32),)
    assert max(allowed(constraint)) < pocket.vocab_size


def test_a_token_that_is_not_allowed_is_refused(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    constraint = compiler.json_object().start()
    with pytest.raises(UsageError, match="cannot follow its grammar any further"):
        constraint.accept(pocket.encode("z")[0])


DEEP: dict[str, Any] = {}
for _ in range(200):
    DEEP = {"properties": {"a": DEEP}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objec"}, "objec"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "no-format"}, "no-format"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "https://localhost/x"}, "localhost"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"enum": []}, "Unsatisfiable"),
        ({"minimum": float("nan")}, "not JSON"),
        ({"title": "\ud800"}, "surrogate"),
        ({"title": "x" * 2**20}, "the limit is"),
        ([1], "list"),
        (DEEP, "JSON"),
    ],
)
def test_schemas_that_cannot_be_enforced_are_told_in_one_line(
    compiler: GrammarCompiler, schema: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        compiler.json_schema(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert caught.value.hint


def test_what_cannot_be_enforced_can_be_left_out_of_account(compiler: GrammarCompiler, pocket: Tokenizer) -> None:
    grammar = compiler.json_schema({"type": "string", "format": "no-format", "not": {"const": "x"}}, lenient=True)
    assert accepts(grammar, pocket.encode('"x"'), 4)
    assert not accepts(grammar, pocket.encode("1"), 4)


@pytest.mark.parametrize("pattern", ["(a", "(?=a)b", "[z-a]", r"\1", "a" * 2**20 + "b"])
def test_patterns_that_are_not_valid_are_told(compiler: GrammarCompiler, pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern") as caught:
        compiler.regex(pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "x: y", "start: nothing", "start: <no-token>", "start: start2\nstart2: ("])
def test_grammars_that_are_not_valid_are_told(compiler: GrammarCompiler, text: str) -> None:
    with pytest.raises(UsageError, match="grammar") as caught:
        compiler.lark(text)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_stop_token_cannot_be_constrained(pocket: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no token that ends an answer"):
        GrammarCompiler(pocket, [])


def test_the_missing_package_is_told(pocket: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="llguidance") as caught:
        GrammarCompiler(pocket, POCKET_STOPS)
    assert "halfbyte[grammar]" in caught.value.hint
