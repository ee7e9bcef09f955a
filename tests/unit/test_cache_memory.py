"""How much memory the caches of several conversations get: what is free, not the worst case of each."""

from __future__ import annotations

from typing import Any

import pytest

from halfbyte import executors
from halfbyte.errors import DeviceError
from halfbyte.model import Model, load
from halfbyte.plan import Plan, make_plan
from halfbyte.synthetic import SyntheticWeights
from tests.models.tiny import tiny


def cache_nbytes(plan: Plan) -> int:
    return sum(tensor.nbytes for tensor in plan.of_kind("cache"))


def loaded(monkeypatch: pytest.MonkeyPatch, free: int, **options: Any) -> Model:
    """The pocket model where so many bytes are free."""
    monkeypatch.setattr(executors, "available_memory", lambda: free)
    return load(device="cpu", threads=1, **options)


@pytest.fixture(scope="module")
def position_nbytes() -> int:
    plan = load(device="cpu", threads=1, context=64).plan
    return cache_nbytes(plan) // 64


def test_sequences_share_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch, position_nbytes: int) -> None:
    alone = loaded(monkeypatch, 2 * 2048 * position_nbytes).plan
    assert alone.context > 512
    together = loaded(monkeypatch, 2 * 2048 * position_nbytes, sequences=16).plan
    assert together.context == alone.context, "not a sixteenth of it"
    assert together.cache_tokens == 2048
    assert cache_nbytes(together) <= 2048 * position_nbytes


def test_the_caches_are_no_larger_than_all_can_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, 1 << 40, sequences=3, context=96).plan.cache_tokens == 3 * 96


def test_one_context_is_never_refused_by_this(monkeypatch: pytest.MonkeyPatch, position_nbytes: int) -> None:
    plan = loaded(monkeypatch, 2 * 100 * position_nbytes, sequences=4, context=256).plan
    assert (plan.context, plan.cache_tokens) == (256, 256)
    smaller = loaded(monkeypatch, 2 * 100 * position_nbytes, sequences=2).plan
    assert (smaller.context, smaller.cache_tokens) == (96, 96)


def test_more_sequences_than_blocks_are_refused_with_figures(
    monkeypatch: pytest.MonkeyPatch, position_nbytes: int
) -> None:
    with pytest.raises(
        DeviceError, match=r"^100 conversations at once need at least .*B of cache, .* 32 tokens .* room for 8 blocks"
    ) as raised:
        loaded(monkeypatch, 2 * 256 * position_nbytes, sequences=100)
    assert raised.value.hint == "Use sequences=8 or fewer."


@pytest.mark.parametrize("family", ["gemma-3-1b", "mistral-7b-v0.1", "llama-3.1-8b"])
@pytest.mark.parametrize("cache_tokens", [1, 40, 100, 129, 256, 1000])
def test_pools_hold_at_least_one_sequence_and_at_most_all(family: str, cache_tokens: int) -> None:
    spec = tiny(family).spec
    plan = make_plan(
        spec, SyntheticWeights(spec).format, sequences=3, context=70, tokens=8, block_size=4, cache_tokens=cache_tokens
    )
    for group in plan.groups:
        blocks = plan.tensors[group.caches[0][0]].shape[0]
        assert group.columns <= blocks <= 3 * group.columns
        assert blocks == 3 * group.columns or blocks <= max(group.columns, -(-cache_tokens // 4))
