"""Blocks: who uses them, what they are offered for, and which goes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.plan.plan import CacheGroup, Plan, Tensor
from halfbyte.runtime import prefixes
from halfbyte.runtime.blocks import BlockPools, BlockTable, Prefix, ring_room
from halfbyte.runtime.pool import Content, Pool

TOKENS = list(range(100, 164))


def plan_of(*, ring_columns: int = 4, window: int = 5, blocks: int = 20, ring_blocks: int = 20) -> Plan:
    """A plan with a context of 64 positions, in blocks of 4."""
    columns = {"blocks.all": (16, None), "blocks.ring": (ring_columns, window)}
    count = {"blocks.all": blocks, "blocks.ring": ring_blocks}
    caches = {
        f"{name}.{kv}": Tensor(f"{name}.{kv}", (count[name], 1, 4, 1), "f32", "cache", 0)
        for name in columns
        for kv in "kv"
    }
    groups = tuple(CacheGroup(name, n, w, ((f"{name}.k", f"{name}.v"),)) for name, (n, w) in columns.items())
    return Plan(8, 1, 4, 64, 4, caches, (), groups, {})


def chain_of(tokens: list[int], *, rope_set: int = 0, scope: bytes = b"") -> list[bytes]:
    chain = [prefixes.root(scope, rope_set)]
    prefixes.extend(chain, tokens, 4)
    return chain


def computed(pools: BlockPools, length: int, tokens: list[int] = TOKENS, *, step: int = 5) -> BlockTable:
    """A table whose positions below `length` were computed, a few at a time, and recorded."""
    table, chain = BlockTable(), chain_of(tokens)
    for start in range(0, length, step):
        stop = min(start + step, length)
        assert pools.can_hold(table, start, stop)
        pools.hold(table, start, stop)
        pools.record(table, chain, stop)
    return table


def row(table: BlockTable, name: str = "blocks.all") -> list[int]:
    blocks: list[int] = table.rows[name].blocks.tolist()
    return blocks


def test_blocks_are_handed_out_lowest_first_and_those_without_content_again() -> None:
    pools, first, second = BlockPools(plan_of()), BlockTable(), BlockTable()
    pools.hold(first, 0, 5)
    pools.hold(second, 0, 1)
    assert row(first) == [0, 1] + [-1] * 14
    assert row(second)[:2] == [2, -1]
    pools.release(first)
    assert first.rows == {}
    pools.hold(second, 1, 9)
    assert row(second)[:4] == [2, 0, 1, -1]
    assert second.rows["blocks.all"].blocks.dtype == np.int32


def test_what_is_full_keeps_its_content_while_there_is_untouched_memory() -> None:
    pools = BlockPools(plan_of(blocks=16))
    pools.release(computed(pools, 16))
    other = computed(pools, 48, [7] * 64)
    assert pools.find(chain_of(TOKENS), TOKENS) == Prefix(4, 0)
    pools.hold(other, 48, 52)
    assert pools.find(chain_of(TOKENS), TOKENS) == Prefix(3, 0), "the end of what was let go of first goes first"


def test_content_that_was_used_again_outlives_what_was_not() -> None:
    pool = Pool(3)
    for name in (b"a", b"b", b"c"):
        pool.record(pool.take(), Content(name))
    for block in range(3):
        pool.drop(block)
    pool.drop(pool.share(b"a"))
    assert pool.take() == 1
    assert (pool.has(b"a"), pool.has(b"b"), pool.has(b"c")) == (True, False, True)


def test_several_tables_share_full_blocks_until_the_last_lets_go() -> None:
    pools, chain = BlockPools(plan_of()), chain_of(TOKENS)
    first, second = computed(pools, 18), BlockTable()
    prefix = pools.find(chain, TOKENS[:14])
    assert pools.adopt(second, chain, prefix) == 12
    assert row(second)[:4] == [*row(first)[:3], -1]
    pools.release(first)
    assert pools.free["blocks.all"] == 17
    pools.release(second)
    assert pools.free["blocks.all"] == 20


def test_the_part_of_a_block_goes_to_one_who_goes_on_from_there() -> None:
    pools, chain = BlockPools(plan_of()), chain_of(TOKENS)
    table = computed(pools, 11)
    pools.record_tail(table, chain[2], tuple(TOKENS[8:11]))
    last = row(table)[2]
    pools.release(table)
    assert pools.find(chain, [*TOKENS[:10], 1, 2]) == Prefix(2, 2)
    assert pools.find(chain, TOKENS[:9]) == Prefix(2, 0), "one token is always computed"
    taker = BlockTable()
    assert pools.adopt(taker, chain, pools.find(chain, TOKENS)) == 11
    assert row(taker)[2] == last
    assert pools.find(chain, TOKENS) == Prefix(2, 0)


def test_no_other_scope_rope_set_or_beginning_finds_a_block() -> None:
    pools = BlockPools(plan_of())
    computed(pools, 32)
    assert pools.find(chain_of(TOKENS), TOKENS).blocks == 8
    for other in (chain_of(TOKENS, rope_set=1), chain_of(TOKENS, scope=b"mine"), chain_of([1, *TOKENS[1:]])):
        assert pools.find(other, TOKENS) == Prefix(0, 0)


def test_what_a_failed_sequence_computed_is_found_by_nobody() -> None:
    pools, chain = BlockPools(plan_of()), chain_of(TOKENS)
    table = computed(pools, 18)
    pools.record_tail(table, chain[4], tuple(TOKENS[16:18]))
    pools.forget(chain)
    pools.release(table)
    assert pools.find(chain, TOKENS) == Prefix(0, 0)
    assert pools.free == {"blocks.all": 20, "blocks.ring": 20}


def test_a_ring_lets_go_of_what_no_later_position_sees() -> None:
    pools, table = BlockPools(plan_of()), BlockTable()
    pools.hold(table, 0, 64)
    assert row(table, "blocks.ring") == [0, 1, 2, 3], "as many as it has columns, while the first is still to come"
    pools.hold(table, 8, 64)
    assert row(table, "blocks.ring") == [0, 1, 2, 3]
    assert (table.rows["blocks.ring"].first, table.rows["blocks.ring"].stop) == (1, 5)
    assert pools.free == {"blocks.all": 4, "blocks.ring": 16}


def test_a_ring_takes_another_block_in_place_of_one_that_is_kept_or_shared() -> None:
    pools, chain = BlockPools(plan_of()), chain_of(TOKENS)
    first, second = computed(pools, 16), BlockTable()
    pools.adopt(second, chain, pools.find(chain, TOKENS[:17]))
    shared = row(second, "blocks.ring")
    for start in range(16, 32, 4):
        assert pools.can_hold(second, start, start + 4)
        pools.hold(second, start, start + 4)
    assert row(first, "blocks.ring") == [0, 1, 2, 3]
    assert not set(row(second, "blocks.ring")) & set(shared)


def test_a_shared_block_that_leaves_a_ring_frees_nothing() -> None:
    pools, chain = BlockPools(plan_of(blocks=40, ring_blocks=6)), chain_of(TOKENS)
    first, second, third = computed(pools, 12), BlockTable(), BlockTable()
    pools.adopt(second, chain, pools.find(chain, TOKENS[:13]))
    pools.hold(second, 12, 24)
    assert pools.free["blocks.ring"] == 0
    assert not pools.can_hold(second, 24, 28)
    pools.release(first)
    pools.hold(third, 0, 8)
    assert pools.free["blocks.ring"] == 0
    assert pools.can_hold(second, 24, 28), "the block is its own now"


def test_no_room_is_seen_before_anything_is_taken() -> None:
    pools, first, second = BlockPools(plan_of(blocks=16)), BlockTable(), BlockTable()
    pools.hold(first, 0, 60)
    assert pools.can_hold(second, 0, 4)
    assert not pools.can_hold(second, 0, 4, spare=1)
    assert not pools.can_hold(second, 0, 5)
    assert pools.can_hold(first, 0, 64)


@given(st.integers(1, 9), st.integers(2, 6), st.integers(1, 60), st.data())
@settings(deadline=None)
def test_a_prefix_is_found_exactly_where_a_ring_has_the_window_before_it(
    window: int, columns: int, length: int, data: st.DataObject
) -> None:
    plan = plan_of(window=window, ring_columns=columns)
    if ring_room(plan) < 1:
        return
    pools, chain = BlockPools(plan), chain_of(TOKENS)
    table = computed(pools, length, step=data.draw(st.integers(1, ring_room(plan))))
    ring = table.rows["blocks.ring"]
    lost = data.draw(st.sets(st.integers(0, length // 4)))
    for index in lost:
        for _, pool in pools._pools[1:]:
            pool.forget(chain[min(index + 1, length // 4)])
    held = set(range(ring.first, length // 4)) | {i for i in range(ring.first) if pools._pools[1][1].has(chain[i + 1])}
    held -= {min(index, length // 4 - 1) for index in lost}
    usable = [
        n
        for n in range(1, length // 4 + 1)
        if all(position // 4 in held for position in range(max(0, 4 * n - window + 1), 4 * n))
    ]
    assert pools.find(chain, [*TOKENS, 0]).blocks == max(usable, default=0)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["grow", "tail", "release"]), st.integers(1, 64), st.booleans())
    )
)
@settings(max_examples=100, deadline=None)
def test_every_block_is_used_free_or_kept(actions: list[tuple[int, str, int, bool]]) -> None:
    pools, tables = BlockPools(plan_of()), [BlockTable() for _ in range(4)]
    lengths, texts = [0] * 4, [TOKENS] * 4
    for which, action, length, same in actions:
        table, tokens = tables[which], texts[which]
        chain, known = chain_of(tokens), lengths[which]
        if action != "grow":
            full = table.recorded * 4
            if action == "tail" and known > full:
                pools.record_tail(table, chain[table.recorded], tuple(tokens[full:known]))
            pools.release(table)
            lengths[which] = 0
            texts[which] = TOKENS if same else [which, *TOKENS[1:]]
        elif not known:
            lengths[which] = pools.adopt(table, chain, pools.find(chain, tokens[:length]))
        elif known < length and pools.can_hold(table, known, stop := min(length, known + 5)):
            pools.hold(table, known, stop)
            pools.record(table, chain, stop)
            lengths[which] = stop
        for group, pool in pools._pools:
            used = {b for t in tables if group.blocks in t.rows for b in row(t, group.blocks) if b >= 0}
            assert len(used) + pool.free == 20
            assert sorted([*used, *pool._empty, *pool._kept]) == list(range(20))


def test_chains_tell_how_many_blocks_they_have_in_common() -> None:
    chain = chain_of(TOKENS)
    for blocks in (0, 1, 7, 15):
        other = [*TOKENS[: 4 * blocks], *([1] * (64 - 4 * blocks))]
        assert prefixes.num_common(chain, chain_of(other)) == blocks
    assert prefixes.num_common(chain, chain[:5]) == 4
    assert prefixes.num_common(chain, chain_of(TOKENS, rope_set=1)) == 0
    assert prefixes.num_common(chain, []) == 0


@pytest.mark.parametrize(("columns", "window", "expected"), [(3, 5, 5), (3, 9, 1), (4, 5, 9), (16, 60, 64)])
def test_positions_written_together_are_no_more_than_rings_allow(columns: int, window: int, expected: int) -> None:
    plan = plan_of(ring_columns=columns, window=window)
    assert ring_room(plan) == expected
    if columns < 16:
        spans = [(start + expected - 1) // 4 - max(0, start - window + 1) // 4 + 1 for start in range(40)]
        assert max(spans) == columns
