"""The tokens of a prompt are told with their log-probabilities, whatever else is computed at the same time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.evaluation.scorer import log_probabilities
from halfbyte.model import Model, load
from halfbyte.sampling import Sampled

TEXTS = ["How do I list all files in a directory?", "ls -la | wc -l", "tar xzf archive.tar.gz -C /tmp", "a"]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Three answers at once, and only one row of logits more than they need."""
    with load(device="cpu", threads=1, sequences=3, logit_rows=4, context=256) as found:
        yield found


def expected(model: Model, ids: list[int]) -> np.ndarray:
    """The log-probabilities after each token of a text, from `Engine.score`."""
    return log_probabilities(np.concatenate([chunk.copy() for chunk in model.engine.score(ids)]))


def check(model: Model, ids: list[int], scores: tuple[Sampled, ...], likely: int) -> None:
    wanted = expected(model, ids)
    assert len(scores) == len(ids) - 1
    for place, score in enumerate(scores):
        assert score.id == ids[place + 1]
        assert score.logprob == pytest.approx(wanted[place, score.id], abs=1e-3)
        assert len(score.top) == likely
        assert [value for _, value in score.top] == sorted((value for _, value in score.top), reverse=True)
        if likely:
            assert score.top[0][0] == int(np.argmax(wanted[place]))
            assert (score.logprob == score.top[0][1]) == (score.id == score.top[0][0])


@pytest.mark.parametrize("likely", [0, 3])
def test_scores_are_those_of_the_text_alone(model: Model, likely: int) -> None:
    for text in TEXTS:
        ids = model.encode(text, raw=True)
        stream = model.submit(ids, max_tokens=3, prompt_logprobs=likely)
        answer = stream.whole()
        check(model, ids, stream.prompt_scores, likely)
        assert answer.text == model.generate(ids, max_tokens=3).text


def test_scores_are_the_same_among_other_answers(model: Model) -> None:
    others = [model.submit(f"How do I copy file{i}?", max_tokens=30, ignore_eos=True) for i in range(4)]
    scored = [model.submit(model.encode(text, raw=True), max_tokens=2, prompt_logprobs=2) for text in TEXTS * 2]
    answers = [stream.whole() for stream in (*others, *scored)]
    for text, stream in zip(TEXTS * 2, scored, strict=True):
        check(model, model.encode(text, raw=True), stream.prompt_scores, 2)
    for i, answer in enumerate(answers[:4]):
        alone = model.generate(f"How do I copy file{i}?", max_tokens=30, ignore_eos=True)
        assert answer.token_ids == alone.token_ids


def test_a_prompt_that_is_cached_is_scored_all_the_same(model: Model) -> None:
    ids = model.encode(TEXTS[0], raw=True)
    model.generate(ids, max_tokens=1)
    stream = model.submit(ids, max_tokens=1, prompt_logprobs=1, cache_prompt=True)
    assert stream.whole().num_cached_tokens == 0
    check(model, ids, stream.prompt_scores, 1)


def test_who_loses_its_blocks_while_it_is_scored_is_scored_once() -> None:
    """Five blocks for two conversations that grow to three each, and a row of logits for each of them."""
    with load(device="cpu", threads=1, sequences=2, context=96, cache_tokens=160, logit_rows=2) as model:
        assert model.plan.block_size == 32
        ids = model.encode("ls " * 90, raw=True)[:70]
        first = model.submit(model.encode("cp " * 30, raw=True)[:20], max_tokens=70, ignore_eos=True)
        stream = model.submit(ids, max_tokens=20, ignore_eos=True, prompt_logprobs=1)
        first.whole()
        stream.whole()
        assert stream._outputs.sequence.num_preemptions
        check(model, ids, stream.prompt_scores, 1)


def test_nothing_is_told_unless_it_is_asked_for(model: Model) -> None:
    stream = model.submit("a", max_tokens=1)
    stream.whole()
    assert stream.prompt_scores == ()
    with pytest.raises(UsageError, match="logprobs must be a whole number between 0 and 20"):
        model.submit("a", prompt_logprobs=21)


def test_the_bytes_of_tokens_joined_are_the_text(model: Model) -> None:
    text = "grep -r 'ünï' /tmp 😀"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(model.tokenizer.token_bytes, ids)).decode() == text
    assert model.tokenizer.token_bytes(10**9) == b""
    assert model.tokenizer.token_bytes(model.stop_token_ids[0]).startswith(b"<|")
