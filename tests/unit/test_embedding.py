"""Texts become vectors, whatever else is computed at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import ContextFullError, DeviceError, UsageError
from halfbyte.model import Model
from halfbyte.plan import Batch, Draw, Pending
from halfbyte.plan.drawing import Finished
from halfbyte.runtime.pooling import Pooler

TEXTS = ["How do I list all files in a directory?", "ls -la | wc -l", "a", "tar xzf archive.tar.gz " * 9]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with halfbyte.load(device="cpu", threads=1, sequences=3, context=256, activations="f32", kv_dtype="f32") as found:
        yield found


def states(model: Model, text: str) -> np.ndarray:
    """The hidden states of a text, from the executor alone."""
    ids = np.array(model.encode(text, raw=True), np.int32)
    zeros, positions = np.zeros_like(ids), np.arange(len(ids), dtype=np.int32)
    tables = {g.blocks: np.full((model.plan.sequences, g.columns), -1, np.int32) for g in model.plan.groups}
    for table in tables.values():
        table[0] = np.arange(table.shape[1])
    batch = Batch(ids, positions, zeros, zeros, tables, np.empty(0, np.int32), hidden=True)
    return model.executor.submit(batch, []).hidden().astype(np.float64)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_pooled_hidden_states(model: Model, pooling: Any) -> None:
    found = model.embed(TEXTS, pooling=pooling, normalize=False)
    assert found.shape == (4, model.spec.hidden_size)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        expected = states(model, text)
        assert np.abs(vector - (expected.mean(axis=0) if pooling == "mean" else expected[-1])).max() < 1e-4
    assert model.engine.idle


def test_the_mean_of_tokens_is_normalized_unless_told_otherwise(model: Model) -> None:
    plain, unit = model.embed(TEXTS, normalize=False), model.embed(TEXTS)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    assert np.allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.1


def test_fewer_dimensions_are_the_first_normalized_again(model: Model) -> None:
    plain, some = model.embed(TEXTS, normalize=False)[:, :20], model.embed(TEXTS, dimensions=20)
    assert np.allclose(some, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(model.embed(TEXTS, normalize=False, dimensions=20), plain)


def test_a_text_may_be_alone_or_token_ids(model: Model) -> None:
    ids = [model.encode(text, raw=True) for text in TEXTS]
    expected = model.embed(TEXTS)
    assert np.array_equal(model.embed(ids), expected)
    assert np.array_equal(model.embed(ids[0]), expected[:1])
    assert np.array_equal(model.embed(np.array(ids[0])), expected[:1])  # type: ignore[arg-type]
    assert np.array_equal(model.embed(TEXTS[0]), expected[:1])
    assert np.array_equal(model.embed(tuple(TEXTS)), expected)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pieces_of_a_text_give_the_same_as_the_whole(model: Model, pooling: Any) -> None:
    """Down to a last piece of one token."""
    ids = model.encode(TEXTS[3], raw=True)
    expected = model.embed(ids, pooling=pooling)
    for tokens in (1, 7, len(ids) - 1):
        with halfbyte.load(
            device="cpu", threads=1, context=256, batch_tokens=tokens, activations="f32", kv_dtype="f32"
        ) as other:
            assert other.plan.tokens == tokens
            assert np.abs(other.embed(ids, pooling=pooling) - expected).max() < 1e-5


def test_vectors_and_answers_are_the_same_beside_each_other(model: Model) -> None:
    prompts = [f"How do I copy file{i}?" for i in range(4)]
    alone = [model.generate(prompt, max_tokens=30, ignore_eos=True).token_ids for prompt in prompts]
    expected = model.embed(TEXTS * 2, pooling="last")
    others = [model.submit(prompt, max_tokens=30, ignore_eos=True) for prompt in prompts]
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(model.embed(TEXTS * 2, pooling="last"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert [stream.whole().token_ids for stream in others] == alone
    for thread in threads:
        thread.join()
    assert all(np.abs(each - expected).max() < 1e-5 for each in found)
    assert len(found) == 2


def test_who_loses_its_blocks_is_read_again_and_counts_once() -> None:
    """Five blocks for a conversation that grows to three, and for texts that take three and are read slowly."""
    sizes = {"sequences": 2, "context": 96, "cache_tokens": 160, "prefill_chunk": 2}
    with halfbyte.load(device="cpu", threads=1, activations="f32", kv_dtype="f32", **sizes) as model:
        ids = model.encode("ls " * 90, raw=True)[:80]
        expected = model.embed(ids)
        first = model.submit(model.encode("cp " * 30, raw=True)[:30], max_tokens=60, ignore_eos=True)
        pooled = [model.engine.pooled(ids, "mean") for _ in range(2)]
        for stream in pooled:
            stream.start()
        first.whole()
        for stream in pooled:
            assert list(stream) == []
            vector = stream.sequence.pooler.vector
            assert vector is not None
            assert np.abs(vector / np.linalg.norm(vector) - expected[0]).max() < 1e-5
        assert any(stream.sequence.num_preemptions for stream in pooled)


def test_states_that_are_computed_again_count_once() -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((10, 4)).astype(np.float32)
    for pooling, expected in (("mean", given.mean(axis=0)), ("last", given[-1])):
        pooler = Pooler(pooling, 10)
        for start, stop in ((0, 4), (0, 3), (3, 8), (8, 10)):
            assert pooler.vector is None
            assert pooler.wants(stop) == (pooling == "mean" or stop == 10)
            pooler.take(start, given[start:stop])
        assert np.allclose(pooler.vector, expected, atol=1e-6)


def test_coroutines_get_the_same(model: Model) -> None:
    async def both() -> tuple[np.ndarray, np.ndarray]:
        return await asyncio.gather(model.aembed(TEXTS), model.aembed(TEXTS[:1], pooling="last"))  # type: ignore[return-value]

    first, second = asyncio.run(both())
    assert np.abs(first - model.embed(TEXTS)).max() < 1e-5
    assert np.abs(second - model.embed(TEXTS[:1], pooling="last")).max() < 1e-5


def test_a_task_that_is_cancelled_leaves_nothing(model: Model) -> None:
    async def leave() -> None:
        task = asyncio.create_task(model.aembed(TEXTS * 50))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(leave())
    assert model.engine.idle


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([], {}, "the prompt is empty"),
        ("", {}, "the prompt is empty"),
        (["a", ""], {}, "the prompt is empty"),
        ([[]], {}, "the prompt is empty"),
        (b"abc", {}, "the prompt is bytes"),
        ([b"abc"], {}, "the prompt is bytes"),
        (5, {}, "the prompt is 5"),
        (["a", 5], {}, "the prompt is 5"),
        ([{"role": "user", "content": "a"}], {}, "the prompt is {'role'"),
        ([5, "a"], {}, "'a' is not a whole number"),
        ([[1.5]], {}, "1.5 is not a whole number"),
        ([10**9], {}, "token id 1000000000"),
        ("a", {"pooling": "cls"}, "pooling is 'cls'. It may be mean or last."),
        ("a", {"pooling": []}, "pooling is []"),
        ("a", {"normalize": 1}, "normalize is 1"),
        ("a", {"dimensions": 0}, "dimensions is 0. Vectors of this model have 1 to 512."),
        ("a", {"dimensions": 513}, "dimensions is 513"),
        ("a", {"dimensions": 1.5}, "dimensions is 1.5"),
        ("a", {"dimensions": True}, "dimensions is True"),
    ],
)
def test_what_is_no_text_or_option_is_refused(model: Model, texts: Any, options: Any, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        model.embed(texts, **options)
    assert words in str(refused.value)


def test_texts_fill_the_context_and_no_more(model: Model) -> None:
    ids = model.encode("ls " * 300, raw=True)
    assert model.embed(ids[:256]).shape == (1, 512)
    with pytest.raises(ContextFullError, match=r"The text has 257 tokens; the context holds 256\. Embed it in pieces"):
        model.embed([ids[:5], ids[:257]])
    assert model.engine.idle


def test_a_faulty_device_gives_an_error_and_no_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    with halfbyte.load(device="cpu", threads=1, context=64) as model:
        submit = model.executor.submit

        def spoiled(batch: Batch, draws: list[Draw], *, steps: int = 1) -> Pending:
            pending = submit(batch, draws, steps=steps)
            return Finished(pending.tokens(), np.full_like(pending.hidden(), np.nan)) if batch.hidden else pending

        monkeypatch.setattr(model.executor, "submit", spoiled)
        with pytest.raises(DeviceError, match="no valid hidden states"):
            model.embed("a")
        assert model.engine.idle
        monkeypatch.undo()
        assert model.embed("a").shape == (1, 512)


def test_a_closed_model_embeds_nothing() -> None:
    model = halfbyte.load(device="cpu", threads=1, context=64)
    model.close()
    with pytest.raises(UsageError, match="the model is closed"):
        model.embed("a")
