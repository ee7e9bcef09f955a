"""A software GPU for tests, and what feeds it."""

from __future__ import annotations

from functools import cache

import numpy as np

from halfbyte.gpu.device.device import Device, enumerate_adapters, open_device
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.plan import Batch, Plan


@cache
def software_gpu(*, baseline: bool = False) -> Device:
    """The software adapter, all it offers or a browser's default limits without subgroups."""
    return open_device(software=True, subgroups=not baseline, limits=BASELINE if baseline else None)


@cache
def software_index() -> int:
    """The software adapter's number, as `load(gpu=…)` takes it."""
    return next(i for i, adapter in enumerate(enumerate_adapters()) if adapter.software)


def block_tables(plan: Plan) -> dict[str, np.ndarray]:
    """Each sequence's share of the blocks, in order."""
    return {
        g.blocks: np.arange(plan.sequences * g.columns, dtype=np.int32).reshape(plan.sequences, -1) for g in plan.groups
    }


def one(plan: Plan, token: int, position: int, *, rope_set: int = 0) -> Batch:
    """A batch of one token of the first sequence, its logits wanted."""
    ids, positions, sequences, sets, rows = (np.array([v], np.int32) for v in (token, position, 0, rope_set, 0))
    return Batch(ids, positions, sequences, sets, block_tables(plan), rows)
