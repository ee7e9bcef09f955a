"""A model that is a formula, for tests of the engine.

The fake executor is a two-layer "transformer" over 64-bit integers. It keeps its layers in paged caches and sees
only what block tables and positions lead it to, so a wrong table, position or RoPE set, or a stale slot, changes
the answer. `answer` computes the same formula from the plain list of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from halfbyte.errors import DeviceError
from halfbyte.plan.batch import Batch, block_bytes
from halfbyte.plan.drawing import Draw, Pending, Token, drawn_on_host
from halfbyte.plan.plan import LOGITS, CacheGroup, Plan, Tensor
from halfbyte.runtime import Engine, EngineLoop, SamplingParams, Sequence, TokenOutput

VOCAB = 24
GREEDY = SamplingParams()
GROUP_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


def scrambled(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def first_layer(tokens: np.ndarray, positions: np.ndarray, rope_sets: np.ndarray) -> np.ndarray:
    mixed = tokens.astype(np.uint64) * np.uint64(0x2545F4914F6CDD1D)
    mixed += positions.astype(np.uint64) * np.uint64(0x5851F42D4C957F2D) + rope_sets.astype(np.uint64) * np.uint64(77)
    return scrambled(mixed)


def attention_weights(distances: np.ndarray, group: int) -> np.ndarray:
    return (2 * distances + 1).astype(np.uint64) * np.uint64(GROUP_FACTORS[group])


def logits_of(hidden: np.ndarray) -> np.ndarray:
    spread = scrambled(hidden[:, None] + np.arange(VOCAB, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((spread >> np.uint64(44)).astype(np.float32) / 2**17).astype(np.float32)


@cache
def all_logits(tokens: tuple[int, ...], rope_set: int, window: int) -> np.ndarray:
    """The formula, from a plain list of tokens: `[len(tokens), VOCAB]`."""
    positions = np.arange(len(tokens))
    hidden = first_layer(np.array(tokens), positions, np.full(len(tokens), rope_set))
    distances = positions[:, None] - positions
    for _ in range(2):
        total = np.zeros(len(tokens), np.uint64)
        for group, reach in enumerate((len(tokens), window)):
            seen = (distances >= 0) & (distances < reach)
            total += (np.where(seen, attention_weights(distances, group), np.uint64(0)) * hidden).sum(
                1, dtype=np.uint64
            )
        hidden = scrambled(total)
    return logits_of(hidden)


def answer(
    prompt: list[int], plan: Plan, *, max_tokens: int, stop: frozenset[int] = frozenset(), switch: int | None = None
) -> list[int]:
    """The greedy answer, each token from a fresh run over everything before it."""
    tokens = tuple(prompt)
    while True:
        rope_set = int(switch is not None and len(tokens) > switch)
        tokens += (int(all_logits(tokens, rope_set, plan.groups[1].window)[-1].argmax()),)
        full = len(tokens) == plan.context
        if tokens[-1] in stop or len(tokens) - len(prompt) == max_tokens or full:
            return list(tokens[len(prompt) :])


class FakeExecutor:
    """Runs the formula on paged caches, and refuses batches beyond the plan."""

    ahead = most_steps = 1

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.caches = {
            name: np.full(t.shape, 0xDEAD, np.uint64) for name, t in plan.tensors.items() if t.kind == "cache"
        }
        self.computed: list[int] = []
        self.fail_after: int | None = None
        self.failure: BaseException = KeyboardInterrupt()
        self.spoiled = False

    def run(self, batch: Batch) -> np.ndarray:
        self.check(batch)
        if self.fail_after is not None and len(self.computed) >= self.fail_after:
            raise self.failure
        self.computed.append(len(batch.token_ids))
        hidden = first_layer(batch.token_ids, batch.positions, batch.rope_sets)
        for layer in range(2):
            self.write(layer, batch, hidden)
            hidden = scrambled(np.array([self.attended(layer, batch, t) for t in range(len(hidden))], np.uint64))
        logits = logits_of(hidden[batch.logit_rows])
        return np.full_like(logits, np.nan) if self.spoiled else logits

    def read_blocks(self, name: str, blocks: Many[int]) -> np.ndarray:
        return block_bytes(self.caches[name])[list(blocks)]

    def write_blocks(self, name: str, blocks: Many[int], values: np.ndarray) -> None:
        block_bytes(self.caches[name])[list(blocks)] = values

    def draws(self, sampling: SamplingParams) -> bool:
        return True

    def submit(self, batch: Batch, draws: Many[Draw], *, steps: int = 1) -> Pending:
        assert steps == 1
        return drawn_on_host(self.run(batch), draws)

    def check(self, batch: Batch) -> None:
        plan = self.plan
        lengths = np.bincount(batch.sequences)
        assert (lengths[batch.sequences[: batch.num_decodes]] == 1).all()
        assert 1 <= len(batch.token_ids) <= plan.tokens
        assert len(batch.logit_rows) <= plan.rows
        assert batch.sequences.max() < plan.sequences
        for array in (batch.token_ids, batch.positions, batch.sequences, batch.rope_sets, batch.logit_rows):
            assert array.dtype == np.int32
        for group in plan.groups:
            table = batch.block_tables[group.blocks]
            assert table.shape == (plan.sequences, group.columns)
            assert table.dtype == np.int32
            uses = Counter(table[table >= 0].tolist())
            for sequence, position in zip(batch.sequences.tolist(), batch.positions.tolist(), strict=True):
                block, _ = self.slot(batch, group, sequence, position)
                assert uses[block] == 1, f"block {block} is written, and used elsewhere"

    def write(self, layer: int, batch: Batch, values: np.ndarray) -> None:
        for group in self.plan.groups:
            for t, value in enumerate(values):
                block, offset = self.slot(batch, group, int(batch.sequences[t]), int(batch.positions[t]))
                self.caches[group.caches[layer][0]][block, offset] = value

    def attended(self, layer: int, batch: Batch, t: int) -> np.uint64:
        position, total = int(batch.positions[t]), np.zeros(1, np.uint64)
        for g, group in enumerate(self.plan.groups):
            seen = np.arange(max(0, position + 1 - (group.window or position + 1)), position + 1)
            slots = [self.slot(batch, group, int(batch.sequences[t]), q) for q in seen.tolist()]
            values = np.array([self.caches[group.caches[layer][0]][slot] for slot in slots], np.uint64)
            total += (attention_weights(position - seen, g) * values).sum(dtype=np.uint64)
        return total[0]

    def slot(self, batch: Batch, group: CacheGroup, sequence: int, position: int) -> tuple[int, int]:
        size = self.plan.block_size
        block = int(batch.block_tables[group.blocks][sequence, (position // size) % group.columns])
        assert block >= 0, f"position {position} has no block in {group.blocks}"
        return block, position % size


def plan_of(
    *, tokens: int = 8, rows: int = 4, sequences: int = 4, context: int = 40, block_size: int = 4, window: int = 5,
    chunk: int = 8, spare_blocks: int | None = None,
) -> Plan:  # fmt: skip
    """A plan of one full and one windowed group, whose ring allows chunks of `chunk` tokens."""
    full = -(-context // block_size)
    ring = min(full, -(-(window - 2 + chunk) // block_size) + 1)
    tensors = {LOGITS: Tensor(LOGITS, (rows, VOCAB), "f32", "output", 0)}
    groups = []
    for name, columns, reach in (("all", full, None), ("ring", ring, window)):
        blocks = columns * sequences if spare_blocks is None else columns + spare_blocks
        pairs = tuple((f"{name}.{layer}.k", f"{name}.{layer}.v") for layer in range(2))
        tensors |= {n: Tensor(n, (blocks, block_size), "f32", "cache", 0) for pair in pairs for n in pair}
        groups.append(CacheGroup(f"blocks.{name}", columns, reach, pairs))
    return Plan(tokens, rows, sequences, context, block_size, tensors, (), tuple(groups), {})


class LateExecutor(FakeExecutor):
    """A device that chooses tokens itself, greedily, and lets them be read later; what it cannot draw the host does."""

    ahead, most_steps = 3, 4

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.drawn: dict[int, int] = {}
        self.waiting: _Late | None = None
        self.unread = self.most_unread = self.most_together = 0

    def draws(self, sampling: SamplingParams) -> bool:
        return sampling.greedy

    def submit(self, batch: Batch, draws: Many[Draw], *, steps: int = 1) -> Pending:
        late = all(self.draws(draw.sampler.params) for draw in draws)
        assert steps == 1 or (late and len(draws) == len(batch.token_ids) == batch.num_decodes)
        assert self.waiting is None, "the draws of an earlier batch wait"
        pending = _Late(self, draws, late)
        for step in range(steps):
            ids = [self.drawn[-1 - token] if token < 0 else token for token in batch.token_ids.tolist()]
            if step:
                ids = [self.drawn[slot] for slot in batch.sequences.tolist()]
            positions = batch.positions + np.int32(step)
            pending.logits = self.run(replace(batch, token_ids=np.array(ids, np.int32), positions=positions))
            if any(draw.allowed for draw in draws if self.draws(draw.sampler.params)):
                assert steps == 1
                self.waiting = pending
            else:
                pending.draw()
        self.unread += steps
        self.most_unread, self.most_together = max(self.most_unread, self.unread), max(self.most_together, steps)
        return pending


class _Late:
    def __init__(self, executor: LateExecutor, draws: Many[Draw], late: bool) -> None:
        self.executor, self.draws, self.late = executor, draws, late
        self.logits = np.empty((0, VOCAB), np.float32)
        self.found: list[list[Token]] = []

    def draw(self) -> None:
        self.found += drawn_on_host(self.logits, self.draws).found
        for draw, token in zip(self.draws, self.found[-1], strict=True):
            assert not isinstance(token, DeviceError) or self.executor.spoiled
            if self.late:
                self.executor.drawn[draw.slot] = 0 if isinstance(token, Exception) else token.id

    def choose(self) -> None:
        if self.executor.waiting is self:
            self.executor.waiting = None
            self.draw()

    def tokens(self) -> list[list[Token]]:
        assert self.executor.waiting is not self, "the draws still wait"
        self.executor.unread -= len(self.found)
        return self.found


EXECUTORS = (FakeExecutor, LateExecutor)


def engine_of(
    plan: Plan, switch: int | None = None, executor: type[FakeExecutor] = FakeExecutor, **options: Any
) -> tuple[Engine, FakeExecutor]:
    made = executor(plan)
    return Engine(made, rope_switch=switch, **options), made


def loop_of(plan: Plan, executor: type[FakeExecutor] = FakeExecutor) -> tuple[EngineLoop, FakeExecutor]:
    engine, made = engine_of(plan, executor=executor)
    return EngineLoop(engine), made


def outputs_of(engine: Engine, prompt: list[int], sampling: SamplingParams, **options: object) -> list[TokenOutput]:
    """The tokens of an answer; those of others are dropped."""
    sequence = engine.submit(prompt, sampling, **options)
    outputs = []
    while not sequence.finished:
        outputs += [output for output in engine.step() if output.sequence is sequence]
    return outputs


def generated(engine: Engine | EngineLoop, prompt: list[int], **options: object) -> list[int]:
    if isinstance(engine, EngineLoop):
        return [output.token_id for output in engine.stream(prompt, GREEDY, **options)]
    return [output.token_id for output in outputs_of(engine, prompt, GREEDY, **options)]


def finish_all(engine: Engine) -> None:
    for _ in range(5000):
        if engine.idle:
            return
        engine.step()
    pytest.fail("the engine makes no progress")


def blocks_unaccounted_for(engine: Engine | EngineLoop, plan: Plan) -> dict[str, int]:
    """Blocks that are not free, by group, once all sequences have finished."""
    scheduler = (engine._engine if isinstance(engine, EngineLoop) else engine)._scheduler
    return {g.blocks: plan.tensors[g.caches[0][0]].shape[0] - scheduler.pools.free[g.blocks] for g in plan.groups}


def check_blocks(engine: Engine, sequences: Many[Sequence]) -> None:
    """Every block is used as often as tables name it, and is in use, free or kept for its content."""
    for group, pool in engine._scheduler.pools._pools:
        rows = [s.table.rows[group.blocks] for s in sequences if group.blocks in s.table.rows]
        named = Counter(block for row in rows for block in row.blocks.tolist() if block >= 0)
        assert named == Counter({block: uses for block, uses in enumerate(pool._uses) if uses})
        assert sorted([*pool._empty, *pool._kept, *named]) == list(range(pool.count))
        assert set(pool._places.values()) == set(pool._contents)
        assert set(pool._kept) == {block for block in pool._contents if block not in named}
        assert not any(pool._contents[block].tail for block in named if block in pool._contents)


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
