"""`Model` from Python: typed options, prompts of every kind, closing, and sentences for what cannot be meant."""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, get_type_hints

import numpy as np
import pytest

import halfbyte
from halfbyte import Model, SamplingParams
from halfbyte.errors import DeviceError, GrammarError, HalfbyteError, UsageError
from halfbyte.model import AnswerOptions
from halfbyte.sampling.params import SamplingOptions
from tests.constraints import Rules, script

PROMPT = "What does ls do?"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with halfbyte.load(threads=1, context=128) as loaded:
        yield loaded


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "seed": 4}])
def test_an_answer_is_held_to_a_schema(model: Model, sampling: Any) -> None:
    schema = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"],
              "additionalProperties": False}  # fmt: skip
    answer = model.generate("How big is it?", grammar=model.grammar.json_schema(schema), **sampling)
    assert json.loads(answer.text)["size"] in ("small", "large")
    assert answer.finish_reason == "stop"
    assert model.grammar is model.grammar


def test_special_tokens_are_shown_where_they_are_asked_for(model: Model) -> None:
    end = model.tokenizer.token(model.generate("What does ls do?").token_ids[-1])
    assert end is not None
    plain, kept = model.generate("What does ls do?"), model.generate("What does ls do?", keep_special=[end])
    assert kept.text == plain.text + end


def test_typed_options_are_all_that_there_are() -> None:
    assert {field.name for field in fields(SamplingParams)} == set(get_type_hints(SamplingOptions))
    own = {
        name
        for name, p in inspect.signature(Model.stream).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert own | set(get_type_hints(SamplingOptions)) == set(get_type_hints(AnswerOptions))


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        (b"What does ls do?", {}, "the prompt is bytes. Decode it first"),
        ([1.0, 2.0], {}, "1.0 is not a whole number"),
        ([1, True], {}, "True is not a whole number"),
        (["a", "b"], {}, "the prompt is a list of texts: 'a'. Give a text, a list of messages"),
        ([{"role": "user", "content": "x"}, "y"], {}, "a list of messages and other things: 'y'"),
        (5, {}, "the prompt is 5. Give a text, a list of messages, or a list of token ids."),
        (None, {}, "the prompt is None."),
        ({"role": "user", "content": "x"}, {}, "the prompt is {'role'"),
        ("", {}, "the prompt is empty."),
        ([], {}, "the prompt is empty."),
        ([8192], {}, "token id 8192; the vocabulary has 8,192 tokens"),
        (PROMPT, {"stop": None}, "stop is None. Give a text, or a list of texts"),
        (PROMPT, {"stop": ["a", 5]}, "stop is ['a', 5]."),
        (PROMPT, {"stop": [""]}, "stop is ['']."),
        (PROMPT, {"temp": 0.7}, "there is no option 'temp'. Did you mean temperature?"),
        (PROMPT, {"max_new_tokens": 5}, "there is no option 'max_new_tokens'. Did you mean max_tokens?"),
        (PROMPT, {"temperatur": 1}, "Did you mean temperature?"),
        (PROMPT, {"typ_p": 0.9}, "Did you mean typical_p?"),
        (PROMPT, {"penalty_last_n": 64}, "Did you mean repeat_last_n?"),
        (PROMPT, {"mirostat_lr": 0.1}, "Did you mean mirostat_eta?"),
        (PROMPT, {"samplers": ["tfs_z"]}, "there is no sampler 'tfs_z'. Known are penalties, logit_bias, dry"),
        (PROMPT, {"dry_sequence_breakers": None}, "dry_sequence_breakers is None. Give a text, or a list of texts"),
        (PROMPT, {"dry_sequence_breakers": ["a", ""]}, "dry_sequence_breakers is ['a', '']."),
        (PROMPT, {"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers has a text of 41 characters."),
        (PROMPT, {"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers has 65 texts."),
        (PROMPT, {"temperature": "hot"}, "temperature must be a number between 0 and 100 (got 'hot')."),
        (PROMPT, {"max_tokens": 1.5}, "max_tokens must be a whole number of at least 1 (got 1.5)."),
        (PROMPT, {"max_tokens": "9"}, "max_tokens must be a whole number of at least 1 (got '9')."),
        (PROMPT, {"raw": True, "system": "S"}, "a system text can only be given with a chat template"),
        (PROMPT, {"raw": True, "tools": [{"name": "f"}]}, "tools can only be given with a chat template"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(model: Model, prompt: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        model.generate(prompt, **options)
    assert words in str(raised.value)
    assert raised.value.hint


def test_token_ids_of_numpy_are_token_ids(model: Model) -> None:
    ids = model.encode(PROMPT)
    expected = model.generate(ids, max_tokens=4).token_ids
    assert model.generate(np.array(ids), max_tokens=np.int64(4)).token_ids == expected  # type: ignore[arg-type]
    assert model.generate([np.int32(i) for i in ids], max_tokens=4).token_ids == expected  # type: ignore[misc]


def test_tokens_become_text_again(model: Model) -> None:
    assert model.decode(model.encode("Use `tar`.", raw=True)) == "Use `tar`."
    assert model.decode(np.array(model.encode("Grüße", raw=True))) == "Grüße"
    assert model.decode([]) == ""
    with pytest.raises(UsageError, match="token id 8192"):
        model.decode([8192])


def test_a_model_shows_what_it_is(model: Model) -> None:
    assert repr(model) == "<Model 'pocket' on cpu: 29.4 M parameters in 16.9 MB, most in q4g64z; context 128>"


def test_an_answer_is_its_text_and_shows_in_a_line_what_it_took(model: Model) -> None:
    answer = model.generate("How do I extract a tar archive?")
    assert str(answer) == f"{answer}" == answer.text
    assert re.fullmatch(
        r"<Generation 'Use `tar`:\\n`tar xf path/to/archive\.tar\.gz`': 15 tokens in .* s, [\d,]+ tokens/s, stop>",
        repr(answer),
    )
    long = replace(answer, text="<b>" * 100, token_ids=(1,), ms_per_token=None, total_s=0.5, finish_reason="length")
    assert repr(long) == f"<Generation '{'<b>' * 20}…': 1 token in 0.5 s, length>"
    assert "&lt;b&gt;" in long._repr_html_()
    assert "<b>" not in long._repr_html_()


def test_a_stream_shows_how_far_it_is(model: Model) -> None:
    stream = model.stream(PROMPT)
    assert repr(stream) == "<Stream '': 0 tokens so far>"
    token = next(stream)
    assert repr(token) == f"Token(id={token.id}, text='List', logprob={token.logprob})"
    assert repr(stream) == "<Stream 'List': 1 token so far>"
    stream.close()
    assert repr(stream) == "<Stream 'List': 1 token, closed>"
    whole = model.stream(PROMPT)
    assert repr(list(whole)[-1]).endswith(", finish_reason='stop')")
    assert repr(whole) == "<Stream 'List directory contents.': 5 tokens, stop>"
    assert repr(model.astream(PROMPT)) == "<AsyncStream '': 0 tokens so far>"


def test_options_show_what_is_not_the_default(model: Model) -> None:
    assert repr(model.options) == "RunOptions(device='cpu', threads=1, context=128)"
    assert repr(SamplingParams(temperature=0.7, logit_bias={})) == "SamplingParams(temperature=0.7)"
    assert repr(model.tokenizer) == "<Tokenizer of 8,192 tokens, with a chat template>"


def test_tools_and_variables_reach_the_template(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    ids = model.encode(PROMPT)
    monkeypatch.setattr(model.tokenizer, "encode_chat", lambda messages, **given: seen.append(given) or ids)
    tools, variables = [{"type": "function", "function": {"name": "ls"}}], {"enable_thinking": False}
    model.chat([{"role": "user", "content": PROMPT}], tools=tools, template_variables=variables, max_tokens=1)
    model.generate(PROMPT, tools=tools, template_variables=variables, max_tokens=1)
    assert seen == [{"tools": tools, "variables": variables}] * 2


def test_repetitions_are_broken_where_texts_say(model: Model) -> None:
    """The pocket model goes on with a list of commands, one like the other, as long as nothing keeps it from that."""

    def answer(**options: Any) -> tuple[int, ...]:
        return model.generate("tar -xf archive.tar\n" * 4, raw=True, max_tokens=12, **options).token_ids

    plain, unbroken = answer(), answer(dry_multiplier=2.0, dry_sequence_breakers=[])
    assert len({plain, unbroken, answer(dry_multiplier=2.0)}) == 3
    assert answer(dry_multiplier=2.0, dry_sequence_breakers=" ") == plain, "no repetition reaches over a space"
    assert answer(dry_multiplier=2.0, dry_sequence_breakers=["\n", ":", '"', "*"]) == answer(dry_multiplier=2.0)
    spaces = model.tokenizer.spellings(" ")
    assert answer(dry_multiplier=2.0, dry_sequence_breakers=[], dry_breaker_ids=spaces) == plain
    assert answer(dry_sequence_breakers=[]) == plain


def test_a_full_context_ends_the_answer_and_keeps_it() -> None:
    with halfbyte.load(threads=1, context=24) as small:
        answer = small.generate(PROMPT, max_tokens=100, ignore_eos=True)
    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + answer.new_tokens == 24
    assert answer.text


def test_a_closed_model_refuses_everything_with_a_sentence() -> None:
    with halfbyte.load(threads=1, context=64) as model:
        stream = model.stream(PROMPT, ignore_eos=True)
        next(stream)
    model.close()
    assert ", closed>" in repr(model)
    for call in (
        lambda: next(stream), lambda: model.generate(PROMPT), lambda: model.stream(PROMPT), lambda: model.encode("x"),
        lambda: model.chat([{"role": "user", "content": "x"}]), lambda: model.decode([1]),
    ):  # fmt: skip
        with pytest.raises(HalfbyteError, match=r"the model is closed\. Load it again\."):
            call()
    assert stream.result().finish_reason == "cancelled"


def test_closing_while_another_thread_answers_ends_its_stream() -> None:
    model = halfbyte.load(threads=1, context=2048)
    begun, ended = threading.Event(), list[str]()

    def answer() -> None:
        try:
            for _ in model.stream(PROMPT, max_tokens=1900, ignore_eos=True):
                begun.set()
        except UsageError as error:
            ended.append(str(error))

    thread = threading.Thread(target=answer)
    thread.start()
    assert begun.wait(60)
    model.close()
    thread.join(60)
    assert ended == ["the model is closed. Load it again."]


def test_too_little_memory_is_a_sentence_with_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("halfbyte.cpu.executor._allocate", none_left)
    with pytest.raises(
        DeviceError, match=r"not enough memory: .*16\.9 MB of weights and .* of cache for 64 tokens"
    ) as raised:
        halfbyte.load(threads=1, context=64)
    assert raised.value.hint


def test_an_answer_follows_a_grammar(model: Model) -> None:
    ids = [*model.tokenizer.encode("cat file"), model.stop_token_ids[0]]
    free, vocab = model.generate(PROMPT, max_tokens=8), model.plan.vocab_size
    for seed, temperature in ((None, 0.0), (3, 1.0)):
        held = model.generate(PROMPT, grammar=script(ids, vocab), seed=seed, temperature=temperature)
        assert (held.text, held.finish_reason) == ("cat file", "stop")
    assert model.generate(PROMPT, max_tokens=8, grammar=Rules(lambda _: range(vocab), vocab)).text == free.text
    with pytest.raises(GrammarError, match="the grammar allows no token after 2 tokens of the answer"):
        model.generate(PROMPT, grammar=script(ids[:2], vocab))
