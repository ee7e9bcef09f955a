"""What a program takes for a batch is made once and kept, but never more of it than a long-lived server can hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.gpu.lowering.program import Axis, Extent, grid
from halfbyte.gpu.run import bound
from halfbyte.gpu.run.bound import KEYS_STEP, MOST_GRIDS, MOST_RECORDED, BoundDispatch, BoundProgram, Buffer


@pytest.fixture
def cache() -> Buffer:
    return Buffer("a cache", grows=True)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, cache: Buffer) -> BoundProgram:
    """One dispatch whose grid follows the tokens, and one that changes over 100 keys; nothing is on a device."""
    monkeypatch.setattr(bound, "bind_group", _bound)
    monkeypatch.setattr(bound.ffi, "handle_of", lambda thing: thing)
    monkeypatch.setattr(bound.ffi, "address", id)
    short, long, other = (_kernel(name) for name in ("short", "long", "other"))
    few = BoundDispatch(
        short, {"x": cache}, grid(1), "attend", long=BoundDispatch(long, {"x": cache}, grid(2)), long_keys=100
    )
    many = BoundDispatch(other, {"x": cache}, grid(Axis(count="tokens")), "store")
    return BoundProgram(SimpleNamespace(), [few, many])  # type: ignore[arg-type]


def _bound(_device: Any, dispatch: BoundDispatch) -> Any:
    return SimpleNamespace(handle=dispatch.buffers["x"].handle)


def _kernel(name: str) -> Any:
    return SimpleNamespace(name=name, handle=name)


def test_commands_are_made_once_for_batches_of_one_extent(program: BoundProgram) -> None:
    assert program.commands(Extent(1, 1, KEYS_STEP + 1)) is program.commands(Extent(1, 1, 2 * KEYS_STEP))
    assert program.commands(Extent(1, 1, 1)) is not program.commands(Extent(1, 1, 2 * KEYS_STEP))


def test_commands_follow_the_extent(program: BoundProgram) -> None:
    few, many = (program.commands(Extent(tokens, 1, keys)) for tokens, keys in ((3, 16), (7, 112)))
    assert [command[2:] for command in few] == [(1, 1, 1), (3, 1, 1)]
    assert [command[2:] for command in many] == [(2, 1, 1), (7, 1, 1)]
    assert few[0][0] != many[0][0], "over many keys another kernel runs"
    assert few[1][0] == many[1][0]


def test_what_a_batch_has_no_work_for_is_left_out(program: BoundProgram) -> None:
    split = BoundDispatch(_kernel("split"), program.dispatches[0].buffers, grid(Axis(count="decodes")), "attend")
    tiled = BoundDispatch(_kernel("tiled"), program.dispatches[0].buffers, grid(Axis(count="prompts")), "attend")
    mixed = BoundProgram(SimpleNamespace(), [split, tiled, program.dispatches[1]])  # type: ignore[arg-type]
    for decodes, expected in ((0, [tiled]), (3, [split, tiled]), (9, [split])):
        commands = mixed.commands(Extent(9, 1, 16, decodes))
        assert [command.dispatch for command in commands] == [*expected, program.dispatches[1]]


def test_what_was_used_longest_ago_is_forgotten(program: BoundProgram) -> None:
    first, often = program.commands(Extent(1, 1, 16)), program.commands(Extent(1, 1, 32))
    for rows in range(2, MOST_RECORDED + 2):
        program.commands(Extent(1, rows, 16))
        assert program.commands(Extent(1, 1, 32)) is often
    assert program.commands(Extent(1, 1, 16)) is not first


def test_single_commands_are_forgotten_when_they_are_many(program: BoundProgram) -> None:
    first = program.commands(Extent(1, 1, 16))
    same = program.commands(Extent(1, 2, 16))
    assert all(one is other for one, other in zip(first, same, strict=True)), "as long as they are few they are shared"
    for tokens in range(2, 2 * MOST_GRIDS + 2):
        program.commands(Extent(tokens, 1, 16))
    again = program.commands(Extent(1, 3, 16))
    assert again == first
    assert again[1] is not first[1]


def test_a_cache_that_has_grown_is_bound_anew(program: BoundProgram, cache: Buffer) -> None:
    before = program.commands(Extent(1, 1, 16))
    cache.replace("a larger cache")
    after = program.commands(Extent(1, 1, 16))
    assert [command[0] for command in before] == [command[0] for command in after]
    assert before[0][1] != after[0][1]


def test_what_does_not_grow_stays_bound(program: BoundProgram, cache: Buffer, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = BoundDispatch(_kernel("gemm"), {"x": Buffer("weights")}, grid(1), "gemm")
    mixed = BoundProgram(SimpleNamespace(), [*program.dispatches, weights])  # type: ignore[arg-type]
    bound_now: list[str] = []
    monkeypatch.setattr(
        bound, "bind_group", lambda device, dispatch: bound_now.append(dispatch.label) or _bound(device, dispatch)
    )
    mixed.commands(Extent(1, 1, 16))
    cache.replace("a larger cache")
    mixed.commands(Extent(1, 1, 16))
    assert bound_now == ["attend", "store", "gemm", "attend", "store"]


def test_only_memory_that_may_grow_is_replaced() -> None:
    with pytest.raises(TypeError, match="stays"):
        Buffer("weights").replace("others")
