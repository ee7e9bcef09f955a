"""From a `ModelSpec` to a plan that an executor can run."""

from __future__ import annotations

from collections.abc import Callable

from halfbyte.errors import UsageError
from halfbyte.formats import Format
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import cache
from halfbyte.plan.batch import Batch, Executor, Runner
from halfbyte.plan.build import build
from halfbyte.plan.drawing import Allowed, Draw, Pending
from halfbyte.plan.fuse import fuse
from halfbyte.plan.memory import plan_memory
from halfbyte.plan.plan import CacheGroup, Plan, StateGroup, Tensor

__all__ = [
    "Allowed", "Batch", "CacheGroup", "Draw", "Executor", "Pending", "Plan", "Runner", "StateGroup", "Tensor",
    "make_plan",
]  # fmt: skip


def make_plan(
    spec: ModelSpec,
    formats: Callable[[str], Format],
    *,
    tokens: int = 256,
    rows: int = 8,
    sequences: int = 1,
    context: int | None = None,
    block_size: int = 32,
    kv_dtype: str = "f16",
    cache_tokens: int | None = None,
    kept_states: int | None = None,
    fused: bool = True,
) -> Plan:
    """The plan of a model: built, fused, its memory planned.

    Args:
        formats: The format each weight is stored in, by name.
        tokens: Most tokens of one batch; fewer if all sequences together cannot have as many.
        rows: Most rows of logits of one batch.
        sequences: Most sequences of one batch.
        context: Most positions of a sequence; the model's own, or `cache_tokens` if that is less, if None.
        block_size: Positions in a cache block.
        kv_dtype: `f16`, `f32`, `q8` or `q4`; see `halfbyte.plan.cache`.
        cache_tokens: Positions of all sequences together that the caches hold, at least one sequence's context and at
            most `sequences` times `context`, which it is if None.
        kept_states: Where layers keep states, how many are kept beside one for each sequence; see `build.KEPT_NBYTES`.
        fused: False leaves the plain ops, for comparison.

    Raises:
        UsageError: A capacity is out of range.
    """
    if context is None:
        context = min(spec.context, cache_tokens or spec.context)
    if not 1 <= context <= spec.context:
        raise UsageError(f"context {context} is out of range.", f"This model takes 1 to {spec.context} tokens.")
    cache.check(kv_dtype)
    plan = build(
        spec,
        formats,
        tokens=min(tokens, sequences * context),
        rows=rows,
        sequences=sequences,
        context=context,
        block_size=block_size,
        kv_dtype=kv_dtype,
        cache_tokens=cache_tokens,
        kept_states=kept_states,
    )
    return plan_memory(fuse(plan) if fused else plan)
