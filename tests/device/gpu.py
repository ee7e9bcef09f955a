"""A software GPU for tests, and what feeds it."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from functools import cache

import numpy as np

from halfbyte.gpu.device.device import Device, enumerate_adapters, open_device
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.plan import Batch, Draw, Executor, Plan
from halfbyte.sampling import Sampled, Sampler, SamplingParams

GREEDY = SamplingParams()


@cache
def software_gpu(*, baseline: bool = False) -> Device:
    """The software adapter, all it offers or a browser's default limits without subgroups."""
    return open_device(software=True, subgroups=not baseline, limits=BASELINE if baseline else None)


@cache
def software_pipelines() -> Pipelines:
    """The kernels of the software adapter: each compiled once, whoever uses it."""
    return Pipelines(software_gpu())


@cache
def software_index() -> int:
    """The software adapter's number, as `load(gpu=…)` takes it."""
    return next(i for i, adapter in enumerate(enumerate_adapters()) if adapter.software)


def block_tables(plan: Plan) -> dict[str, np.ndarray]:
    """Each sequence's share of the blocks, and its state."""
    return plan.own_tables()


def one(plan: Plan, token: int, position: int, *, rope_set: int = 0) -> Batch:
    """A batch of one token of the first sequence, its logits wanted."""
    ids, positions, sequences, sets, rows = (np.array([v], np.int32) for v in (token, position, 0, rope_set, 0))
    return Batch(ids, positions, sequences, sets, block_tables(plan), rows)


def drawn(
    executor: Executor,
    batch: Batch,
    limit: int,
    sampling: SamplingParams = GREEDY,
    prompt_ids: Many[int] = (),
) -> list[Sampled]:
    """The tokens that an executor chooses after a batch of one token, several submitted at once."""
    sampler, found, ids = Sampler(sampling), list[Sampled](), list[int]()
    while len(found) < limit:
        steps = min(executor.most_steps, limit - len(found))
        draw = Draw(int(batch.sequences[0]), sampler, prompt_ids, ids)
        for (token,) in executor.submit(batch, [draw], steps=steps).tokens():
            assert isinstance(token, Sampled)
            found.append(token)
            ids.append(token.id)
        batch = replace(batch, token_ids=-1 - batch.sequences, positions=batch.positions + np.int32(steps))
    return found
