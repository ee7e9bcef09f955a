"""A prompt as the caches hold it, taken out of them and put back: its tokens, and the bytes of its blocks."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UsageError
from halfbyte.plan.batch import CacheMemory
from halfbyte.plan.plan import Plan
from halfbyte.runtime import prefixes
from halfbyte.runtime.blocks import BlockPools, BlockTable, Prefix


@dataclass(frozen=True)
class CachedPrompt:
    """The full blocks of a prompt; of windowed layers those that a position after them looks back to.

    Attributes:
        token_ids: The tokens of all full blocks.
        rope_set: The set of RoPE frequencies that keys are rotated with.
        adapter: The number of the adapter that it was computed with; 0 for none.
        blocks: By the name of each cache tensor, uint8 `[blocks, bytes of a block]`; of layers that keep states the one
            after all these tokens.
    """

    token_ids: tuple[int, ...]
    rope_set: int
    blocks: dict[str, NDArray[np.uint8]]
    adapter: int = 0


def take_out(
    plan: Plan, pools: BlockPools, memory: CacheMemory, token_ids: Many[int], rope_set: int, adapter: int = 0
) -> CachedPrompt:
    """What the caches hold of a prompt: as many of its leading full blocks as are there, and can be gone on from."""
    chain = _chain(token_ids, rope_set, adapter, plan.block_size)
    full = pools.find(chain, [*token_ids, 0], tails=False).blocks
    table = BlockTable()
    length = pools.adopt(table, chain, Prefix(full, 0))
    try:
        blocks = {
            name: memory.read_blocks(name, table.rows[group.blocks].held)
            for group in plan.groups
            for name in group.names
        }
        if plan.states:
            held = [table.before] if full else []
            blocks |= {name: memory.read_blocks(name, held) for name in plan.states.names}
    finally:
        pools.release(table)
    return CachedPrompt(tuple(token_ids[:length]), rope_set, blocks, adapter)


def put_in(plan: Plan, pools: BlockPools, memory: CacheMemory, prompt: CachedPrompt) -> None:
    """Write a prompt into free blocks, which keep it until their memory is needed.

    Raises:
        UsageError: It is longer than the context, or there are too few free blocks.
    """
    length, table = len(prompt.token_ids), BlockTable()
    chain = _chain(prompt.token_ids, prompt.rope_set, prompt.adapter, plan.block_size)
    if length > plan.context:
        raise UsageError(
            f"the prompt has {length:,} tokens; the context holds {plan.context:,}.",
            "Load the model with a larger context.",
        )
    pools.begin(table, length)
    if not pools.can_hold(table, length, length):
        raise UsageError(
            f"the prompt has {length:,} tokens; the KV cache has room for {plan.cache_tokens:,} of all conversations.",
            "Load the model with more cache_tokens, or when fewer conversations run.",
        )
    try:
        pools.hold(table, length, length)
        for group in plan.groups:
            for name in group.names:
                memory.write_blocks(name, table.rows[group.blocks].held, prompt.blocks[name])
        pools.record(table, chain, length)
        if plan.states and length:
            for name in plan.states.names:
                memory.write_blocks(name, [table.state], prompt.blocks[name])
            pools.record_state(table, chain[-1], ())
    finally:
        pools.release(table)


def _chain(token_ids: Many[int], rope_set: int, adapter: int, block_size: int) -> list[bytes]:
    chain = [prefixes.root(b"", rope_set, adapter)]
    prefixes.extend(chain, token_ids, block_size)
    return chain
