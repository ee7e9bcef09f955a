"""Blocks are handed out once, lowest first, and a cache rewinds only to what its rings still hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.plan.plan import CacheGroup, Plan, Tensor
from halfbyte.runtime.blocks import BlockPools, BlockTable, longest_chunk


def plan_of(*, ring_columns: int = 3, window: int = 5, blocks: int = 20, tokens: int = 8, context: int = 64) -> Plan:
    columns = {"blocks.all": (context // 4, None), "blocks.ring": (ring_columns, window)}
    caches = {
        f"{name}.{kv}": Tensor(f"{name}.{kv}", (blocks, 1, 4, 1), "f32", "cache", 0) for name in columns for kv in "kv"
    }
    groups = tuple(CacheGroup(name, n, w, ((f"{name}.k", f"{name}.v"),)) for name, (n, w) in columns.items())
    return Plan(tokens, 1, 4, context, 4, caches, (), groups, {})


def test_lowest_blocks_first_and_freed_ones_again() -> None:
    pools, first, second = BlockPools(plan_of()), BlockTable(), BlockTable()
    pools.hold(first, 5)
    pools.hold(second, 1)
    assert first.rows["blocks.all"].tolist() == [0, 1] + [-1] * 14
    assert second.rows["blocks.all"][:2].tolist() == [2, -1]
    pools.release(first)
    assert set(first.rows["blocks.all"].tolist()) == {-1}
    pools.hold(second, 9)
    assert second.rows["blocks.all"][:4].tolist() == [2, 0, 1, -1]
    assert second.rows["blocks.all"].dtype == np.int32


def test_rewinding_frees_what_only_later_positions_use() -> None:
    pools, table = BlockPools(plan_of()), BlockTable()
    pools.hold(table, 20)
    table.written = 20
    pools.rewind(table, 5)
    assert pools.free == {"blocks.all": 18, "blocks.ring": 18}
    assert table.rows["blocks.all"][:3].tolist() == [0, 1, -1]
    pools.release(table)
    assert table == BlockTable(table.rows, {"blocks.all": 0, "blocks.ring": 0}, written=0)


def test_a_ring_never_needs_more_than_its_columns() -> None:
    pools, table = BlockPools(plan_of()), BlockTable()
    pools.hold(table, 64)
    assert table.rows["blocks.ring"].tolist() == [0, 1, 2]
    assert pools.free == {"blocks.all": 4, "blocks.ring": 17}


def test_no_room_is_seen_before_anything_is_taken() -> None:
    pools, first, second = BlockPools(plan_of(blocks=16)), BlockTable(), BlockTable()
    pools.hold(first, 60)
    assert pools.can_hold(second, 4)
    assert not pools.can_hold(second, 5)
    assert pools.can_hold(first, 64)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["grow", "rewind", "release"]), st.integers(1, 64))))
@settings(max_examples=60, deadline=None)
def test_no_block_is_ever_in_two_places(actions: list[tuple[int, str, int]]) -> None:
    pools, tables = BlockPools(plan_of()), [BlockTable() for _ in range(4)]
    for which, action, length in actions:
        table = tables[which]
        if action == "release":
            pools.release(table)
        elif action == "rewind" and length <= table.written:
            pools.rewind(table, length)
        elif action == "grow" and pools.can_hold(table, length):
            pools.hold(table, length)
            table.written = max(table.written, length)
        for name, free in pools.free.items():
            held = [b for t in tables for b in t.rows.get(name, np.empty(0, np.int32)).tolist() if b >= 0]
            assert len(held) == len(set(held))
            assert len(held) + free == 20


@given(st.integers(2, 9), st.integers(2, 5), st.integers(1, 60), st.data())
def test_a_cache_rewinds_exactly_to_what_its_ring_holds(
    window: int, columns: int, written: int, data: st.DataObject
) -> None:
    plan = plan_of(window=window, ring_columns=columns)
    length = data.draw(st.integers(1, written))
    slots = {position % (columns * 4): position for position in range(written)}
    seen = range(max(0, length - window + 1), length)
    intact = all(slots[position % (columns * 4)] == position for position in seen)
    assert BlockPools(plan).can_rewind(BlockTable(written=written), length) == intact


@pytest.mark.parametrize(("columns", "window", "expected"), [(3, 5, 8), (3, 9, 4), (2, 8, 1), (16, 60, 8)])
def test_a_chunk_is_no_longer_than_rings_allow(columns: int, window: int, expected: int) -> None:
    assert longest_chunk(plan_of(ring_columns=columns, window=window)) == expected
