"""States of sequences: which of them is gone on from, which is left, which are kept, and for whom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from halfbyte.plan.plan import CacheGroup, Plan, StateGroup, Tensor
from halfbyte.runtime import Engine, SamplingParams, Sequence
from halfbyte.runtime.blocks import BlockPools, BlockTable, Prefix
from tests.unit.engine_fakes import FakeExecutor, LateExecutor, finish_all, plan_of
from tests.unit.test_blocks import TOKENS, chain_of


def with_states(plan: Plan, count: int) -> Plan:
    """The plan with a layer that keeps so many states."""
    tensor = Tensor("matrices", (count, 1), "f32", "cache", 4 * count)
    return replace(plan, tensors={**plan.tensors, "matrices": tensor}, states=StateGroup("states", ("matrices",)))


def pools_of(count: int) -> BlockPools:
    """Blocks of 4 positions, enough of them, and so many states."""
    caches = {name: Tensor(name, (32, 1, 4, 1), "f32", "cache", 0) for name in "kv"}
    return BlockPools(
        with_states(Plan(8, 1, 4, 64, 4, caches, (), (CacheGroup("blocks", 16, None, (("k", "v"),)),), {}), count)
    )


def computed(pools: BlockPools, length: int, *, keep: tuple[int, ...] = ()) -> BlockTable:
    """A table whose positions below `length` were computed a block at a time, with states kept after some."""
    table, chain = BlockTable(), chain_of(TOKENS)
    for start in range(0, length, 4):
        stop = min(start + 4, length)
        assert pools.can_hold(table, start, stop)
        pools.hold(table, start, stop)
        pools.record(table, chain, stop)
        pools.move_on(table)
        if stop in keep:
            pools.keep_state(table, chain[stop // 4])
    return table


def test_a_sequence_is_found_as_far_as_there_are_blocks_and_a_state() -> None:
    pools, chain = pools_of(5), chain_of(TOKENS)
    pools.release(computed(pools, 24, keep=(8, 16)))
    assert pools.find(chain, TOKENS) == Prefix(4, 0)
    assert pools.find(chain, TOKENS[:15]) == Prefix(2, 0)
    assert pools.find(chain, TOKENS[:8]) == Prefix(0, 0)
    assert pools.num_full(chain, TOKENS) == 6


def test_a_kept_state_is_read_and_another_one_written() -> None:
    pools, chain = pools_of(5), chain_of(TOKENS)
    first = computed(pools, 8, keep=(8,))
    kept = first.before
    assert first.states == (kept, first.state)
    assert first.state != kept
    second = BlockTable()
    assert pools.adopt(second, chain, pools.find(chain, TOKENS)) == 8
    pools.hold(second, 8, 12)
    assert second.states[0] == kept
    assert second.state not in (kept, first.state)
    pools.move_on(second)
    assert second.states == (second.state, second.state)


def test_the_last_state_is_found_only_by_those_who_begin_with_all_its_tokens() -> None:
    pools, chain = pools_of(5), chain_of(TOKENS)
    table = computed(pools, 11)
    state, tail = table.state, tuple(TOKENS[8:11])
    pools.record_tail(table, chain[2], tail)
    pools.record_state(table, chain[2], tail)
    pools.release(table)
    assert pools.find(chain, [*TOKENS[:10], 1, 2]) == Prefix(0, 0), "one token more than the new text shares"
    assert pools.find(chain, TOKENS[:11]) == Prefix(0, 0), "the last token is always computed"
    taker = BlockTable()
    assert pools.adopt(taker, chain, pools.find(chain, TOKENS)) == 11
    assert taker.states == (state, state), "nobody else goes on from it"


def test_nothing_is_kept_where_no_state_is_free_and_the_oldest_goes_first() -> None:
    pools, chain = pools_of(2), chain_of(TOKENS)
    table = computed(pools, 24, keep=(8, 16, 24))
    assert table.before >= 0
    pools.release(table)
    assert pools.find(chain, TOKENS) == Prefix(6, 0)
    alone = pools_of(1)
    assert computed(alone, 8, keep=(8,)).before == -1
    assert not alone.can_hold(BlockTable(), 0, 4)


def test_states_are_forgotten_with_the_rest_of_a_failed_sequence() -> None:
    pools, chain = pools_of(4), chain_of(TOKENS)
    table = computed(pools, 16, keep=(8,))
    pools.record_state(table, chain[4], ())
    pools.forget(chain)
    pools.release(table)
    assert pools.find(chain, TOKENS) == Prefix(0, 0)


def answered(engine: Engine, prompt: list[int], count: int = 3, **options: int) -> Sequence:
    sequence = engine.submit(prompt, SamplingParams(), max_tokens=count, **options)
    finish_all(engine)
    return sequence


def test_the_next_turn_goes_on_from_the_end_of_the_answer() -> None:
    engine = Engine(FakeExecutor(with_states(plan_of(), 8)))
    first = answered(engine, TOKENS_IN_VOCABULARY[:10], 6)
    second = answered(engine, [*first.tokens, 3, 4])
    assert second.num_cached_tokens == len(first.tokens) - 1, "the last token was not computed"


def test_tokens_computed_beyond_the_end_spoil_the_last_state_but_not_the_prompts() -> None:
    engine = Engine(LateExecutor(with_states(plan_of(), 8)))
    first = engine.submit(TOKENS_IN_VOCABULARY[:10], SamplingParams(), max_tokens=20)
    while len(first.generated_ids) < 4 or first.num_computed <= len(first.tokens):
        engine.step()
    assert not first.finished
    engine.cancel(first)
    finish_all(engine)
    assert answered(engine, [*first.tokens, 3, 4]).num_cached_tokens == 8


def test_a_state_is_kept_where_prompts_part() -> None:
    """The second finds no state where it parts from the first, and leaves one there for the third."""
    engine, begin = Engine(FakeExecutor(with_states(plan_of(), 8))), TOKENS_IN_VOCABULARY[:13]
    cached = [answered(engine, [*begin, *end]).num_cached_tokens for end in ([1] * 9, [2] * 9, [3] * 9)]
    assert cached == [0, 0, 12]


def test_prompts_that_wait_for_each_other_part_where_a_state_is() -> None:
    engine, begin = Engine(FakeExecutor(with_states(plan_of(), 8))), TOKENS_IN_VOCABULARY[:13]
    first, second = (engine.submit([*begin, *[n] * 9], SamplingParams(), max_tokens=2) for n in (1, 2))
    finish_all(engine)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)


def test_several_steps_go_together_only_where_a_state_is_read_and_written() -> None:
    executor = LateExecutor(with_states(plan_of(), 8))
    seen: list[tuple[bool, int]] = []
    submit = executor.submit

    def noted(batch, draws, *, steps=1):  # type: ignore[no-untyped-def]
        before, after = batch.block_tables["states"][batch.sequences[0]]
        seen.append((bool(before == after), steps))
        return submit(batch, draws, steps=steps)

    executor.submit = noted  # type: ignore[method-assign]
    answered(Engine(executor), TOKENS_IN_VOCABULARY[:9], 20)
    assert max(steps for _, steps in seen) > 1
    assert all(steps == 1 or same for same, steps in seen)
    assert not all(same for same, _ in seen), "after the state at the end of the prompt's last full block"


TOKENS_IN_VOCABULARY = np.random.default_rng(5).integers(3, 24, 40).tolist()
