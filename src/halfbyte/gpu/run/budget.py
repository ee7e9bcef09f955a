"""What a plan takes on a GPU, and whether that fits, before anything is loaded.

WebGPU tells no memory size. A discrete GPU's is asked of Vulkan; one that shares the host's memory, or is software, has
what the host has free. Where neither is known only the sizes of single buffers are checked, and the driver refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from halfbyte.errors import DeviceError
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.device.memory import free_vulkan_memory
from halfbyte.gpu.lowering.columns import ROW_TILE
from halfbyte.gpu.lowering.lower import caches
from halfbyte.gpu.lowering.sampling import params_pitch
from halfbyte.plan import Plan
from halfbyte.plan.ops import Rows
from halfbyte.plan.plan import LOGITS
from halfbyte.units import quantity

USABLE = 0.95
"""Share of the free memory that is counted on: the driver takes some itself."""

_SHARED = ("IntegratedGPU", "CPU")


@dataclass(frozen=True)
class Needs:
    """Bytes on the device: of weights, of full KV caches and states, and of everything that is computed."""

    weights: int
    cache: int
    states: int
    scratch: int

    @property
    def fixed(self) -> int:
        """What does not depend on the tokens that the caches hold."""
        return self.weights + self.computing

    @property
    def computing(self) -> int:
        """What computing takes beside weights and caches."""
        return self.states + self.scratch

    @property
    def nbytes(self) -> int:
        """All together."""
        return self.fixed + self.cache


def needs(plan: Plan) -> Needs:
    """What a plan takes. Scratch is estimated, a little high: programs for few and for many tokens keep their own."""
    rows = plan.rows if plan.rows <= 8 else -(-plan.rows // ROW_TILE) * ROW_TILE
    vocabulary = plan.tensors[LOGITS].shape[1]
    logits = 4 * rows * vocabulary
    return Needs(
        sum(tensor.nbytes for tensor in plan.of_kind("weight")),
        sum(_cache_nbytes(plan)),
        sum(cache.blocks * cache.block_nbytes for cache in caches(plan).values()) - sum(_cache_nbytes(plan)),
        2 * plan.arena_nbytes + 2 * logits + 4 * plan.sequences * params_pitch(vocabulary) + (16 << 20),
    )


def _cache_nbytes(plan: Plan) -> list[int]:
    """Bytes of each cache of keys or values, as its buffer holds it."""
    states = plan.states.names if plan.states else ()
    return [cache.blocks * cache.block_nbytes for name, cache in caches(plan).items() if name not in states]


def free_memory(device: Device, host_nbytes: int) -> int | None:
    """Bytes that can be counted on; None where nobody tells.

    Args:
        host_nbytes: Bytes of the host's memory that are free.
    """
    adapter = device.adapter
    found: int | None = None
    if adapter.type in _SHARED or adapter.backend == "Metal":
        found = host_nbytes
    elif adapter.backend == "Vulkan":
        found = free_vulkan_memory(adapter.vendor, adapter.device)
    return None if found is None else int(found * USABLE)


def batch_tokens(plan: Plan, device: Device) -> int:
    """Tokens of a batch for which every activation fits one buffer, at most the plan's."""
    body = plan.steps[: next(i for i, step in enumerate(plan.steps) if isinstance(step, Rows))]
    widest = max(sum(plan.tensors[name].shape[0] for name in getattr(step, "weights", ())) for step in body)
    return max(1, min(plan.tokens, device.capabilities.largest // (4 * (widest + 31)) // ROW_TILE * ROW_TILE))


def fitting_tokens(plan: Plan, device: Device, free: int | None, *, share: float = 1.0) -> int:
    """Tokens of all sequences together whose cache fits beside weights and scratch; 0 if not even one block does.

    At most the plan's `cache_tokens`.

    Args:
        free: As `free_memory` tells.
        share: The part that the cache may take of what the rest leaves.
    """
    needed, ratio = needs(plan), 1.0
    if free is not None and needed.cache:
        ratio = (free - needed.fixed) * share / needed.cache
    largest = max(_cache_nbytes(plan))
    ratio = min(ratio, device.capabilities.largest / largest)
    if ratio >= 1:
        return plan.cache_tokens
    return max(0, math.floor(plan.cache_tokens * ratio) // plan.block_size * plan.block_size)


def check(plan: Plan, device: Device, free: int | None) -> None:
    """Refuse what cannot fit, with figures.

    Raises:
        DeviceError: The weights, the cache, or a single buffer is too large.
    """
    needed, name = needs(plan), device.name
    fitting = fitting_tokens(plan, device, free)
    what = f"a context of {plan.context:,} tokens"
    hint = f"Use a context of at most {min(plan.context, fitting):,} tokens."
    if plan.cache_tokens > plan.context and fitting >= plan.context:
        what, hint = f"a cache of {plan.cache_tokens:,} tokens", f"Use cache_tokens of at most {fitting:,}."
    if free is not None and (needed.nbytes > free and fitting == 0):
        raise DeviceError(
            f"the model takes {quantity(needed.weights, 'B')} of weights and {quantity(needed.computing, 'B')} to "
            f"compute; {name} has {quantity(free, 'B')} free.",
            "Store its weights in fewer bits (weights='q4g32'), take a smaller model, or use device='cpu'.",
        )
    if free is not None and needed.nbytes > free:
        raise DeviceError(
            f"{what} takes {quantity(needed.cache, 'B')} beside "
            f"{quantity(needed.weights, 'B')} of weights and {quantity(needed.computing, 'B')} to compute; {name} has "
            f"{quantity(free, 'B')} free.",
            hint,
        )
    largest = max(_cache_nbytes(plan))
    if largest > device.capabilities.largest:
        raise DeviceError(
            f"{what} takes {quantity(largest, 'B')} in each layer, but {name} allows "
            f"{quantity(device.capabilities.largest, 'B')} in one buffer.",
            hint,
        )
