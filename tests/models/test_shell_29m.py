"""The trained checkpoint: greedy answers token for token, and what 4 bits change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import DeviceError


@pytest.fixture(scope="module")
def answers(shared: Path) -> list[dict[str, Any]]:
    """150 prompts with the greedy ids and texts that transformers gives in float32."""
    return [json.loads(line) for line in (shared / "data" / "answers-dev.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_all_greedy_answers_agree_token_for_token(
    shell_29m: Path, answers: list[dict[str, Any]], kv_dtype: str
) -> None:
    model = halfbyte.load(shell_29m, "cpu", kv_dtype=kv_dtype)
    different = []
    for answer in answers:
        got = model.generate(answer["question"], max_tokens=len(answer["greedy_ids"]))
        if (list(got.token_ids), got.text) != (answer["greedy_ids"], answer["greedy_text"]):
            different.append(answer["question"])
    assert len(answers) == 150
    assert different == []


def test_the_oracle_gives_the_same(shell_29m: Path, answers: list[dict[str, Any]]) -> None:
    model = halfbyte.load(shell_29m, "reference")
    for answer in answers[:2]:
        got = model.generate(answer["prompt_ids"], max_tokens=len(answer["greedy_ids"]))
        assert list(got.token_ids) == answer["greedy_ids"]


@pytest.mark.parametrize("weights", ["q4g32", "q4g32z"])
def test_four_bits_keep_most_answers(shell_29m: Path, answers: list[dict[str, Any]], weights: str) -> None:
    model = halfbyte.load(shell_29m, "cpu", weights=weights)
    kept = sum(model.generate(a["question"], max_tokens=64).text == a["greedy_text"] for a in answers)
    assert kept >= 125


def test_8_bit_activations_cost_little(shell_29m: Path, shared: Path) -> None:
    """Against float activations on the same 4-bit weights, over the first 2,048 tokens of prose not trained on."""
    exact, rounded = (
        halfbyte.load(shell_29m, "cpu", weights="q4g32", activations=activations, kv_dtype="f32")
        for activations in ("f32", "int8")
    )
    ids = exact.tokenizer.encode((shared / "data" / "books-dev.txt").read_text(), add_special_tokens=False)[:2048]
    p, q = (np.concatenate([log_softmax(rows) for rows in m.engine.score(ids)])[:-1] for m in (exact, rounded))
    assert np.mean((np.exp(p) * (p - q)).sum(axis=1)) <= 0.001
    positions = np.arange(len(p))
    assert np.exp(np.mean(p[positions, ids[1:]] - q[positions, ids[1:]])) <= 1.001


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_a_seed_gives_the_same_text_again(shell_29m: Path) -> None:
    """Whatever was asked before, and is still in the cache."""
    model = halfbyte.load(shell_29m)
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.5, "top_p": 0.98, "raw": True}
    first, again, other = (model.generate("The ship", seed=seed, **options).token_ids for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_several_turns_reuse_the_cache_and_change_nothing(shell_29m: Path) -> None:
    model = halfbyte.load(shell_29m)
    messages = [{"role": "user", "content": "How do I extract a tar archive?"}]
    first = model.chat(messages)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And how do I create one?"}]
    second = model.chat(messages)
    assert second.num_cached_tokens > first.prompt_tokens
    assert halfbyte.load(shell_29m).chat(messages).token_ids == second.token_ids


def test_a_stop_string_ends_the_answer_and_is_not_shown(shell_29m: Path) -> None:
    model = halfbyte.load(shell_29m)
    whole = model.generate("How do I extract a tar archive?")
    word = whole.text.split()[1]
    cut = model.generate("How do I extract a tar archive?", stop=[word])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(word)]


def test_a_full_context_ends_the_answer_and_a_prompt_that_fills_it_is_an_error(shell_29m: Path) -> None:
    model = halfbyte.load(shell_29m, context=32)
    tokens = list(model.stream("Once upon a time", raw=True, ignore_eos=True, max_tokens=100))
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + ["context"]
    answer = model.generate("Once upon a time", raw=True, ignore_eos=True, max_tokens=100)
    assert (answer.finish_reason, answer.new_tokens + answer.prompt_tokens) == ("context", 32)
    assert answer.text == "".join(token.text for token in tokens)
    with pytest.raises(halfbyte.ContextFullError, match="32"):
        model.generate(list(range(5, 50)))


def test_closing_a_stream_cancels_it(shell_29m: Path) -> None:
    model = halfbyte.load(shell_29m)
    with model.stream("Once upon a time", raw=True, ignore_eos=True) as stream:
        tokens = [next(stream).id for _ in range(3)]
    assert stream.result().finish_reason == "cancelled"
    assert stream.result().token_ids == tuple(tokens)
    assert next(stream, None) is None
    assert list(model.generate("Once upon a time", raw=True, ignore_eos=True, max_tokens=3).token_ids) == tokens


@pytest.mark.parametrize("activations", ["int8", "f32"])
@pytest.mark.parametrize("value", [0x7FC0, 0x7F80], ids=["NaN", "infinity"])
def test_a_weight_that_is_no_number_gives_no_text(
    shell_29m: Path, tmp_path: Path, activations: str, value: int
) -> None:
    """One of a query's weights, in bf16: the reference refuses the logits that come of it, and so does the CPU."""
    folder = tmp_path / "damaged"
    shutil.copytree(shell_29m, folder)
    for path in (folder, folder / "model.safetensors"):
        path.chmod(0o755)
    entry = SafetensorsFile(folder / "model.safetensors").entries["model.layers.0.self_attn.qkv_proj.weight"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(entry.start)
        file.write(value.to_bytes(2, "little"))
    model = halfbyte.load(folder, "cpu", activations=activations, context=64)
    with pytest.raises(DeviceError, match="no valid logits"):
        model.generate("What does grep do?", max_tokens=4)
