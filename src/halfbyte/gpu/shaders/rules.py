"""The sizes that each family of kernels takes for a shape.

The rules are what a device gets on which nothing was measured; `halfbyte tune` tries each family's other sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.gpu.shaders.family import Constants, Family
from halfbyte.gpu.shaders.variants import KernelConfig

Sizes = Mapping[str, Any]
BUSY_WORKGROUPS = 128
"""Workgroups of attention that are enough where heads that share keys take many registers; of others more run at once:
an H200 has 132 cores."""
FOR_ALL = 4
"""Times as many are enough for more than 8 tokens together: each of them needs fewer splits."""
_FEW_KEYS = (256, 4, 1, 2)
_MANY_KEYS = {1: (128, 4, 1, 4), 2: (256, 3, 1, 2), 3: (256, 2, 2, 1), 4: (256, 4, 1, 1)}
"""WG, KEYS, EIGHTS and times BUSY_WORKGROUPS, by the query heads that share keys, as they were fastest on an H200."""
FEWEST_SPLITS = 16
"""Splits that attention over many keys should have."""
FEW_ROWS = 64
"""Rows that a matrix × matrix product takes as one tile; there are kernels of their own for some counts up to it."""
CORES = 132
"""Of an H200."""
STAGING = 0.3
"""What a workgroup of a product over few rows takes to read x, in times of what 8 of its outputs take."""
LONG_TILE = 3 * 8192
"""Outputs of an invocation times depth from which it takes 8 of 32 rows, where its workgroup is alone on a core."""
LEAST_STORAGE = 16384
"""Bytes of workgroup memory that every device has."""
PRODUCTS_AHEAD = 3
"""How far ahead: of a layer's four products the two long ones then ask for the two long ones."""
PAGE_NBYTES = 1 << 20
"""How far apart they ask; on an H200 half as far and twice as far are slower."""
MERGING_STORAGE = 10_000
"""Bytes of workgroup memory in which attention merges its teams; twice that where there is room for wide tiles."""


LARGEST_ROUNDING = 28672
"""Rows of the largest matrix whose workgroups each round the input: of larger ones there are too many workgroups."""
LONGEST_ROUNDED = 4096
"""Values of the longest input that they round: what writes a longer one has workgroups enough to round it once."""


def rounds(config: KernelConfig, *, outputs: int, inputs: int) -> bool:
    """Whether the workgroups of a matrix × vector product each norm and round the input."""
    return config.fused_rounding and outputs <= LARGEST_ROUNDING and inputs <= LONGEST_ROUNDED


def _gemv(
    config: KernelConfig,
    *,
    outputs: int,
    blocks: int,
    int8: bool,
    gated: bool,
    emit: bool,
    columns: int,
    rounds: bool,
    **format: int | str,
) -> Constants:
    """Sizes for a matrix × vector product: WG, TEAM, ROWS, UNROLL.

    With `emit` a workgroup owns 32 outputs or a multiple of that: the blocks of int8 values that it writes.
    """
    if rounds:
        wg, team, rows, unroll = _rounding(outputs, blocks, gated, emit)
    elif emit:
        wg, team, rows, unroll = _emitting(config, gated, blocks, columns)
    elif not int8 or not config.subgroup:
        wg, team, rows, unroll = 128, 32, 1, _unroll(blocks, 32, columns)
    elif outputs >= 16384:
        wg, team, rows, unroll = 64, 16, 2, next(u for u in (3, 2, 1) if blocks % (16 * u) == 0 or u == 1)
    elif blocks >= 192 and columns == 1:
        wg, team, rows, unroll = (256, 256, 2, 1) if blocks % 256 == 0 else (128, 64, 1, 1)
    else:
        wg, team, rows, unroll = 256, 32, 1, 1
    return {"WG": wg, "TEAM": team, "ROWS": rows, "UNROLL": unroll, "SUBGROUP": config.subgroup}


def _gemv_derived(sizes: Sizes) -> Constants:
    """What follows for a matrix × vector product: UNITS, rows of the matrix a team reads; WIDTH, lanes that sum up."""
    units = sizes["ROWS"] * (2 if sizes["gated"] else 1)
    width = min(sizes["TEAM"], sizes["SUBGROUP"] or sizes["TEAM"])
    return {"UNITS": units, "COLS": sizes["columns"], "WIDTH": width}


def _unroll(blocks: int, team: int, units: int) -> int:
    """Rounds of loads in flight at once; of several, one that leaves no ragged last round if that is near the most."""
    rounds = -(-blocks // team)
    if units == 1:
        return min(rounds, 8)
    most = max(1, min(rounds, {2: 6, 4: 4}.get(units, 2)))
    even = next(u for u in range(most, 0, -1) if u == 1 or blocks % (team * u) == 0)
    return even if 2 * even >= most else most


def _emitting(config: KernelConfig, gated: bool, blocks: int, columns: int) -> tuple[int, int, int, int]:
    """Sizes for 32 outputs a workgroup, as they were fastest on an NVIDIA H200: WG, TEAM, ROWS, UNROLL."""
    if not config.large_workgroups or not config.subgroup:
        return 256, 8, 1, _unroll(blocks, 8, (2 if gated else 1) * columns)
    if columns == 8 and gated:
        return 512, 16, 2, 2 if blocks >= 128 and blocks % 32 == 0 else 1
    if columns == 8 and blocks >= 192:
        return 512, 64, 4, 2 if blocks % 128 == 0 else 1
    if columns == 1 and blocks > 32 and not gated:
        team = next(t for t in (128, 64, 32) if blocks % t == 0 or t == 32)
        return 1024, team, team // 32, min(8, blocks // team) if team > 32 else 1
    elif columns == 1 and 32 < blocks <= 64:
        return 1024, 64, 2, 1
    elif gated:
        if blocks == 128:
            return 512, 16, 1, 2
        wg, team, rows = (256, 16, 2) if blocks > 128 else (512, 16, 1)
    else:
        wg, team, rows = (1024, 32, 1) if blocks >= 96 else (512, 16, 1)
    return wg, team, rows, _unroll(blocks, team, rows * (2 if gated else 1))


def _rounding(outputs: int, blocks: int, gated: bool, emit: bool) -> tuple[int, int, int, int]:
    """Sizes where workgroups round the input, as they were fastest on an NVIDIA H200: WG, TEAM, ROWS, UNROLL."""
    if emit and outputs >= 8192 and blocks >= 128:
        return 1024, 32, 4, 1
    if emit:
        return (1024, 32, 1, 1) if blocks % 32 == 0 else (512, 16, 1, 1)
    if outputs >= 8192:
        return 1024, 16, 2, min(3, -(-blocks // 16))
    if outputs > 4096:
        return (1024, 32, 1, 1) if blocks >= 128 else (1024, 32, 2, min(2, -(-blocks // 32)))
    return 1024 if outputs >= 2048 else 512, 32, 1, _unroll(blocks, 32, 1)


def _gemv_fits(config: KernelConfig, sizes: Sizes) -> bool:
    teams, rounds = sizes["WG"] // sizes["TEAM"], -(-sizes["blocks"] // sizes["TEAM"])
    units = sizes["ROWS"] * (2 if sizes["gated"] else 1) * sizes["columns"]
    if sizes["TEAM"] > 32 and (not config.subgroup or sizes["TEAM"] % config.subgroup or sizes["WG"] % sizes["TEAM"]):
        return False
    if sizes["emit"]:
        own = teams * sizes["ROWS"]
        whole = own and own % 32 == 0 and sizes["WG"] >= own // 4 * sizes["columns"]
    else:
        whole = teams >= 1 and (sizes["rounds"] or sizes["WG"] <= 256)
    return bool(
        whole
        and sizes["WG"] <= config.invocations
        and sizes["UNROLL"] <= (rounds if sizes["int8"] else 1)
        and units * sizes["UNROLL"] <= MOST_SUMS
    )


def _gemm(
    config: KernelConfig, *, rows: int, outputs: int, width: int, int8: bool, gated: bool, scales: int, format: str
) -> Constants:
    """Sizes for a matrix × matrix product: WG, TX, RM, RN, STEP; see `gemm.wgsl`.

    Of many rows a workgroup takes 64, by 64 outputs. Fewer are one tile, by as many outputs as leave the fewest cores
    idle. Invocations with many sums, in lanes of 4 × 8, load little for what they multiply: an H200 core makes 64
    products of four bytes per clock, and reads 128 bytes of workgroup memory. Such a tile has few invocations, so
    several teams of them share the depth. `scales` are the most numbers that are staged beside a block.
    """
    whole = {"WG": 256, "TX": 16, "RM": min(4, rows // 16), "RN": 4, "STEP": 4 if config.wide_tiles else 2}
    if rows > FEW_ROWS or not config.sliced_k:
        return whole
    shape = {"rows": rows, "int8": int8, "gated": gated, "scales": scales}
    columns = outputs * (2 if gated else 1)
    if config.wide_tiles and config.large_workgroups:
        sizes = _few_rows(rows, columns, width, gated)
        if _gemm_fits(config, shape | sizes):
            return sizes
    rm = 8 if config.wide_tiles and rows >= 32 else 4
    step = max(256 * rm // (8 * rows), 4 if config.wide_tiles else 2)
    sizes = {"WG": 256, "TX": 8, "RM": rm, "RN": 4, "STEP": step}
    return sizes if _gemm_fits(config, shape | sizes) else whole


def _few_rows(rows: int, columns: int, width: int, gated: bool) -> Constants:
    """Sizes for 16, 32 or 64 rows as they were fastest on an NVIDIA H200: WG, TX, RM, RN, STEP.

    Where each core has one workgroup at most, that is large, and stages much at once.
    """
    if rows == 32 and _turns(columns, 64) > 1:
        return {"WG": 256, "TX": 16, "RM": 8, "RN": 4, "STEP": 4}
    rn = min((4, 2) if gated else (4, 3, 2), key=lambda n: _turns(columns, 8 * n) * (n + STAGING))
    alone = _turns(columns, 8 * rn) == 1
    wg = 512 if alone and (rows == 32 or (rows < 32 and rn != 3)) else 256
    rm = 8 if rows > 32 or (rows == 32 and (not alone or rn * width >= LONG_TILE)) else 4
    teams = wg * rm // (8 * rows)
    return {"WG": wg, "TX": 8, "RM": rm, "RN": rn, "STEP": max(16 * 32 // max(rows, 32) if alone else 4, teams)}


def _turns(columns: int, outs: int) -> int:
    """Workgroups that a core computes, one after the other or side by side."""
    return -(-columns // (outs * CORES))


def _gemm_derived(sizes: Sizes) -> Constants:
    """What follows for a matrix × matrix product.

    ROWS and OUTS of a tile; TEAMS that share its depth, of TX × TY invocations; WORDS of a row that are staged at once;
    TILE, words of workgroup memory; PACKS, fours of sums that teams merge at once.
    """
    wg, tx, rm, rn = (sizes[name] for name in ("WG", "TX", "RM", "RN"))
    rows, outs = min(sizes["rows"], wg // tx * rm), tx * rn
    teams = max(1, wg * rm // (tx * rows))
    words = 2 * sizes["STEP"] if sizes["int8"] else max(4, teams)
    tile = (rows + outs) * (words + 1)
    packs = next(n for n in (8, 4, 2, 1) if n == 1 or (rm * rn // 4 % n == 0 and n * wg // 2 <= tile))
    made = {"ROWS": rows, "OUTS": outs, "TEAMS": teams, "TY": rows // rm, "WORDS": words, "PACKS": packs}
    return made | {"TILE": max(tile, packs * wg // 2 if teams > 1 else 0)}


def _gemm_fits(config: KernelConfig, sizes: Sizes) -> bool:
    made = _gemm_derived(sizes)
    rows, teams, step = made["ROWS"], made["TEAMS"], sizes["STEP"]
    storage = 16 * made["TILE"] + 4 * sizes["scales"] * step * (rows + made["OUTS"])
    room = config.workgroup_storage if config.wide_tiles else min(config.workgroup_storage, LEAST_STORAGE)
    return bool(
        sizes["WG"] * sizes["RM"] == teams * rows * sizes["TX"]
        and (sizes["RN"] % 2 == 0 or not sizes["gated"])
        and sizes["RM"] * sizes["RN"] % 4 == 0
        and sizes["rows"] % rows == 0
        and (teams == 1 or config.sliced_k)
        and (step % teams == 0 or not sizes["int8"])
        and sizes["WG"] <= config.invocations
        and storage <= room
    )


MOST_LEFT = 8
"""Splits that attention leaves for another kernel to merge, at most."""


def _leaving(config: KernelConfig, heads: int, kv_heads: int, head_dim: int) -> Constants:
    """Sizes for attention over few keys that leaves its splits, as they were fastest on an NVIDIA H200."""
    shared = heads * head_dim >= 4096 and heads // kv_heads % 2 == 0
    large = (shared or head_dim > 128) and config.subgroup >= head_lanes(head_dim)
    return {"WG": 512 if large else 256, "SLICE": 2 if shared else 1, "KEYS": 3, "MAX_SPLITS": MOST_LEFT}


def _attend(
    config: KernelConfig,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    columns: int,
    long: bool,
    left: bool,
    **cache: int | str,
) -> Constants:
    """Sizes for attention of few tokens: WG, SLICE, KEYS, EIGHTS, SPLIT_CHUNKS, MAX_SPLITS; ROOM to merge teams in.

    Over many keys query heads share what they read; over few there is little to read, and more workgroups are faster.
    With `left` the product that reads the result merges the splits. Where workgroup memory is short, heads are merged
    one at a time, workgroups are smaller, and then fewer heads share what they read.
    """
    slice_ = _sharing(heads, heads // kv_heads) if long and config.subgroup else 1
    wg, keys, eights, busy = _MANY_KEYS[slice_] if long else _FEW_KEYS
    if not config.subgroup:
        wg, keys, eights = 128, 1, 1
    elif long and head_dim > 128:
        eights = 2
    workgroups = BUSY_WORKGROUPS * busy if columns <= 8 else BUSY_WORKGROUPS * FOR_ALL // columns
    usual = {
        "WG": wg,
        "SLICE": slice_,
        "KEYS": keys,
        "EIGHTS": min(eights, head_lanes(head_dim)),
        "SPLIT_CHUNKS": 1,
        "MAX_SPLITS": max(1, min(64, workgroups * slice_ // heads)),
        "ROOM": 2 * MERGING_STORAGE if config.wide_tiles else MERGING_STORAGE,
        "SUBGROUP": config.subgroup,
    }
    sizes = usual | (_leaving(config, heads, kv_heads, head_dim) if left else {})
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **cache}
    if not _attend_runs(config, shape | sizes):
        sizes["ROOM"] = 0
    while not _attend_runs(config, shape | sizes):
        if sizes["WG"] // 2 > sizes["SLICE"] * head_lanes(head_dim):
            sizes["WG"] //= 2
        elif sizes["SLICE"] > 1:
            sizes["SLICE"] = next(s for s in (3, 2, 1) if s < sizes["SLICE"] and heads // kv_heads % s == 0)
        else:
            break
    return sizes


def _sharing(heads: int, group: int) -> int:
    """Query heads that share what they read of a key head, as far as enough workgroups remain."""
    if heads * FEWEST_SPLITS <= BUSY_WORKGROUPS:
        return 1
    most = next((s for s in (4, 3, 2) if group % s == 0), 1)
    return most if heads // most * FEWEST_SPLITS <= BUSY_WORKGROUPS else max(1, most // 2)


def head_lanes(head_dim: int, eights: int = 1) -> int:
    """Lanes that hold a head, each so many times eight values: a power of two."""
    return 1 << (-(-head_dim // (8 * eights)) - 1).bit_length()


def _attend_derived(sizes: Sizes) -> Constants:
    """What follows for attention of few tokens.

    TL, lanes that hold a head; SLICES, workgroups for the query heads that share a key head; CHUNK, keys that a
    workgroup takes at a time; AT_ONCE, heads whose teams are merged at once.
    """
    lanes = head_lanes(sizes["head_dim"], sizes["EIGHTS"])
    kept = sizes["WG"] // max(lanes, sizes["SUBGROUP"]) * lanes * sizes["EIGHTS"] * 32
    return {
        "TL": lanes,
        "RL": head_lanes(sizes["head_dim"]),
        "SLICES": sizes["heads"] // sizes["kv_heads"] // sizes["SLICE"],
        "CHUNK": sizes["WG"] // lanes * sizes["KEYS"],
        "AT_ONCE": max(1, min(sizes["SLICE"], sizes["ROOM"] // kept)),
    }


def _attend_fits(config: KernelConfig, sizes: Sizes) -> bool:
    lanes = head_lanes(sizes["head_dim"])
    return bool(
        sizes["heads"] // sizes["kv_heads"] % sizes["SLICE"] == 0
        and head_lanes(sizes["head_dim"], sizes["EIGHTS"]) * sizes["EIGHTS"] <= lanes
        and sizes["WG"] // lanes > sizes["SLICE"]
        and sizes["SLICE"] * sizes["head_dim"] // 4 <= sizes["WG"]
        and not (sizes["left"] and sizes["MAX_SPLITS"] > MOST_LEFT)
        and _attend_runs(config, sizes)
    )


def _attend_runs(config: KernelConfig, sizes: Sizes) -> bool:
    return bool(sizes["WG"] <= config.invocations and _attend_storage(config, sizes) <= config.workgroup_storage)


def _attend_storage(config: KernelConfig, sizes: Sizes) -> int:
    """Bytes of workgroup memory that attention of few tokens takes at most."""
    lanes, derived = head_lanes(sizes["head_dim"]), _attend_derived(sizes)
    turning = 0 if config.subgroup >= lanes else sizes["WG"] * 40
    rounding = 0 if config.subgroup or sizes.get("cache") not in ("q8", "q4") else sizes["WG"] * 8
    finish = sizes["WG"] * 4 if config.merged_attention and config.subgroup < 8 else 0
    fresh = (sizes["SLICE"] + 2) * lanes * 32
    groups = sizes["WG"] // max(derived["TL"], config.subgroup)
    merged = groups * (derived["AT_ONCE"] * derived["TL"] * sizes["EIGHTS"] * 32 + sizes["SLICE"] * 8)
    return int(turning + rounding + finish + fresh + merged + 4)


def _attend_tiled(config: KernelConfig, *, head_dim: int, **cache: int | str) -> Constants:
    """Sizes for attention of many tokens: ROWS, KEYS, STAGED."""
    side = 64 if config.wide_tiles else 32
    staged = next(n for n in (64, 32, 16, 8, 4) if n <= side and _stages(n, head_dim, 2 * side))
    return {"ROWS": side, "KEYS": side, "STAGED": staged}


def _stages(keys: int, head_dim: int, rows: int) -> bool:
    """Whether the values of so many keys fit where the tiles of so many rows were."""
    return keys * 2 * -(-head_dim // 8) <= rows * 9


def _attend_tiled_fits(config: KernelConfig, sizes: Sizes) -> bool:
    return (
        (sizes["ROWS"] + sizes["KEYS"] <= 64 or config.wide_tiles)
        and sizes["STAGED"] <= sizes["KEYS"]
        and _stages(sizes["STAGED"], sizes["head_dim"], sizes["ROWS"] + sizes["KEYS"])
    )


def _norm(config: KernelConfig, *, width: int, columns: int) -> Constants:
    """Sizes for a norm: WG, for one row a workgroup; with many rows small ones keep a GPU busier."""
    large = config.large_workgroups and config.subgroup and width > 2048 and columns
    return {"WG": 1024 if large else 256}


def _fits_workgroup(config: KernelConfig, sizes: Sizes) -> bool:
    return bool(sizes["WG"] <= config.invocations)


MOST_SUMS = 64
"""Weights' blocks that an invocation of a matrix × vector kernel holds or sums at once: more do not fit registers."""

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "gemv",
            _gemv,
            {
                "WG": (64, 128, 192, 256, 320, 384, 512, 576, 640, 768, 1024),
                "TEAM": (8, 16, 32, 64, 96, 128, 160, 192, 256),
                "ROWS": (1, 2, 4, 8, 16),
                "UNROLL": (1, 2, 3, 4, 6, 8, 12),
            },
            _gemv_fits,
            _gemv_derived,
        ),
        Family(
            "gemm",
            _gemm,
            {"WG": (256, 512), "TX": (8, 16), "RM": (2, 4, 8), "RN": (2, 3, 4, 8), "STEP": (1, 2, 4, 8, 16)},
            _gemm_fits,
            _gemm_derived,
        ),
        Family(
            "attend",
            _attend,
            {
                "WG": (128, 256, 512),
                "SLICE": (1, 2, 3, 4),
                "KEYS": (1, 2, 3, 4),
                "EIGHTS": (1, 2, 3),
                "SPLIT_CHUNKS": (1, 2),
                "MAX_SPLITS": (8, 10, 12, 16, 32, 64),
            },
            _attend_fits,
            _attend_derived,
        ),
        Family(
            "attend_tiled",
            _attend_tiled,
            {"ROWS": (16, 32, 64), "KEYS": (16, 32, 64), "STAGED": (4, 8, 16, 32, 64)},
            _attend_tiled_fits,
            lambda s: {"WG": 256},
        ),
        Family("norm", _norm, {"WG": (64, 128, 256, 512, 1024)}, _fits_workgroup),
        Family("embed", lambda config, **shape: {"WG": 64}, {"WG": (32, 64, 128, 256)}),
        Family("merge", lambda config, **shape: {"WG": 64}, {"WG": (32, 64, 128, 256)}),
        Family(
            "sample",
            lambda config, **shape: {"WG": 256, "GROUPS": 128},
            {"WG": (64, 128, 256), "GROUPS": (32, 64, 128, 256)},
        ),
    )
}
gemv, gemm, attend, attend_tiled, norm, embed, merge, sample = FAMILIES.values()
