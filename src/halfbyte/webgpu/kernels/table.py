"""Which kernel variant runs where: a row a variant, and the sizes it takes for a shape.

A variant is switched off by its name, when the self-test found it wrong on a device; the plain ones always remain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from halfbyte.webgpu.device import Capabilities

Constants = dict[str, Any]
WIDE_STORAGE = 40_000
"""Bytes of workgroup memory that the wide tiles take."""
BUSY_WORKGROUPS = 128
"""Attention over many keys is split among twice as many workgroups."""
MERGING_STORAGE = 10_000
"""Bytes of workgroup memory in which attention merges its teams; twice that where there is room for wide tiles."""


@dataclass(frozen=True)
class Variant:
    """A way to compute that not every device has.

    Attributes:
        kernels: The kernel files that have it.
        offered: Whether a device can.
    """

    name: str
    kernels: tuple[str, ...]
    offered: Callable[[Capabilities], bool]


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("subgroups", ("gemv", "norm", "attend", "attend_tiled", "embed", "merge"), lambda c: c.subgroup >= 8),
        Variant("int8", ("gemv", "gemm", "norm", "embed", "merge"), lambda c: True),
        Variant("deferred-norm", ("gemv", "embed"), lambda c: True),
        Variant("fused-attention", ("attend",), lambda c: True),
        Variant("merged-attention", ("attend",), lambda c: c.device_barriers),
        Variant("large-workgroups", ("gemv", "norm"), lambda c: c.invocations >= 1024),
        Variant("wide-tiles", ("gemm", "attend_tiled"), lambda c: c.workgroup_storage >= WIDE_STORAGE),
    )
}


@dataclass(frozen=True)
class Choice:
    """The variants in use on a device.

    Attributes:
        subgroup: Lanes of a subgroup where they are used, else 0.
    """

    subgroup: int
    int8: bool
    deferred_norm: bool
    fused_attention: bool
    merged_attention: bool
    large_workgroups: bool
    wide_tiles: bool


def choose(capabilities: Capabilities, *, off: Collection[str] = ()) -> Choice:
    """Every variant the device offers but those switched off by name."""
    on = {name for name, variant in VARIANTS.items() if name not in off and variant.offered(capabilities)}
    return Choice(
        capabilities.subgroup if "subgroups" in on else 0,
        "int8" in on,
        {"int8", "deferred-norm"} <= on,
        "fused-attention" in on,
        "merged-attention" in on,
        "large-workgroups" in on,
        "wide-tiles" in on,
    )


def gemv(choice: Choice, *, outputs: int, blocks: int, int8: bool, gated: bool, emit: bool, columns: int) -> Constants:
    """Sizes for a matrix × vector product: WG, TEAM, ROWS, UNITS, UNROLL.

    With `emit` a workgroup owns 32 outputs, the block of int8 values that it writes.
    """
    if emit:
        wg, team, rows = _emitting(choice, gated, blocks)
    elif not int8 or not choice.subgroup:
        wg, team, rows = 128, 32, 1
    elif outputs >= 16384:
        wg, team, rows = 64, 16, 2
    else:
        wg, team, rows = 256, 16 if 32 < blocks < 96 else 32, 1
    units = rows * (2 if gated else 1)
    return {
        "WG": wg,
        "TEAM": team,
        "ROWS": rows,
        "UNITS": units,
        "UNROLL": _unroll(blocks, team, units),
        "COLS": columns,
        "SUBGROUP": choice.subgroup,
    }


def _unroll(blocks: int, team: int, units: int) -> int:
    """Rounds of loads in flight at once; of several, one that leaves no ragged last round if that is near the most."""
    rounds = -(-blocks // team)
    if units == 1:
        return min(rounds, 8)
    most = max(1, min(rounds, {2: 6, 4: 4}.get(units, 2)))
    even = next(u for u in range(most, 0, -1) if u == 1 or blocks % (team * u) == 0)
    return even if 2 * even > most else most


def _emitting(choice: Choice, gated: bool, blocks: int) -> tuple[int, int, int]:
    """Sizes for 32 outputs a workgroup, as they were fastest on an NVIDIA H200 (`benchmarks/kernels_gpu.py tune`)."""
    if not choice.large_workgroups or not choice.subgroup:
        return 256, 8, 1
    if gated:
        return (256, 16, 2) if blocks >= 128 else (512, 16, 1)
    return (1024, 32, 1) if blocks >= 96 else (512, 16, 1)


def gemm(choice: Choice, *, rows: int) -> Constants:
    """Sizes for a matrix × matrix product: STEP (blocks staged at once), RM (rows of x an invocation takes)."""
    return {"STEP": 4 if choice.wide_tiles else 2, "RM": 4 if rows > 32 else 2}


def attend(choice: Choice, *, heads: int, kv_heads: int, head_dim: int) -> Constants:
    """Sizes for attention of few tokens: WG, TL, SLICE, SLICES, KEYS, CHUNK, SPLIT_CHUNKS, MAX_SPLITS, AT_ONCE."""
    eights = -(-head_dim // 8)
    team = 1 << (eights - 1).bit_length()
    group = heads // kv_heads
    slice_ = next((s for s in (4, 3, 2) if group % s == 0), 1)
    keys = (4 if slice_ * eights <= 64 else 2) if choice.subgroup else 1
    most = min(64, max(4, -(-2 * BUSY_WORKGROUPS * slice_ // heads)))
    return attend_sizes(choice, heads, kv_heads, team, wg=256, slice_=slice_, keys=keys, split_chunks=1, most=most)


def attend_sizes(
    choice: Choice,
    heads: int,
    kv_heads: int,
    team: int,
    *,
    wg: int,
    slice_: int,
    keys: int,
    split_chunks: int,
    most: int,
) -> Constants:
    """Everything about attention of few tokens that follows from the sizes that can be chosen."""
    kept = wg // max(team, choice.subgroup) * 2 * team * 16
    room = 2 * MERGING_STORAGE if choice.wide_tiles else MERGING_STORAGE
    return {
        "WG": wg,
        "TL": team,
        "SLICE": slice_,
        "SLICES": heads // kv_heads // slice_,
        "KEYS": keys,
        "CHUNK": wg // team * keys,
        "SPLIT_CHUNKS": split_chunks,
        "MAX_SPLITS": most,
        "AT_ONCE": max(1, min(slice_, room // kept)),
        "SUBGROUP": choice.subgroup,
    }


def attend_tiled(choice: Choice, *, head_dim: int) -> Constants:
    """Sizes for attention of many tokens: ROWS, KEYS, STAGED."""
    side = 64 if choice.wide_tiles else 32
    fours = 2 * -(-head_dim // 8)
    staged = next(n for n in (64, 32, 16, 8, 4) if n <= side and n * fours <= 2 * side * 9)
    return {"WG": 256, "ROWS": side, "KEYS": side, "STAGED": staged, "SUBGROUP": choice.subgroup}


def norm(choice: Choice, *, width: int) -> Constants:
    """Sizes for a norm: WG, for one row a workgroup."""
    large = choice.large_workgroups and choice.subgroup and width > 2048
    return {"WG": 1024 if large else 256, "SUBGROUP": choice.subgroup}
