"""Lowers attention and what belongs to it: rotation, cache writes, splits along the keys, sizes for few and many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from halfbyte.gpu.lowering.builder import Bound, Builder
from halfbyte.gpu.lowering.norms import quantize_prompts
from halfbyte.gpu.lowering.pages import BITS, page_nbytes
from halfbyte.gpu.lowering.program import Axis, Dispatch, KeySplits, Ref, ceil_div, grid
from halfbyte.gpu.lowering.tensor import DeviceTensor, PartialAttention
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops

_Constants = dict[str, Any]
_Buffers = dict[str, Ref | None]
_HeadsOp = ops.QkNorm | ops.Rope | ops.KvWrite | ops.RopeKvWrite
_Normed = ops.QkNorm | ops.RopeKvWrite
_Rotating = ops.Rope | ops.RopeKvWrite
_LABELS: dict[type[ops.Op], str] = {
    ops.QkNorm: "norm of heads",
    ops.Rope: "rope",
    ops.KvWrite: "cache",
    ops.RopeKvWrite: "rope and cache",
}


def lower_heads(step: _HeadsOp, b: Builder) -> None:
    """Norm and rotation of heads, and the cache write, unless attention does that itself."""
    if b.index in b.schedule.rotating.values() and not isinstance(step, ops.KvWrite):
        b.values[step.out] = b.values[step.qkv]
        return
    if isinstance(step, ops.QkNorm) and step.whole:
        _norm_whole(step, b)
        return
    lanes, heads = rules.head_lanes(step.head_dim), step.heads + 2 * step.kv_heads
    constants, bound = _rotation(step, lanes, b), _rotation_buffers(step, b)
    constants |= {"WG": max(64, lanes), "TL": lanes, "CACHE": False, "FIRST_HEAD": 0, "OUT_HEADS": 0}
    if isinstance(step, ops.KvWrite | ops.RopeKvWrite):
        constants |= _cache_constants(step, b) | {"CACHE": True}
        bound |= _cache_buffers(step)
    if isinstance(step, ops.KvWrite):
        constants["FIRST_HEAD"] = step.heads
    else:
        constants["OUT_HEADS"] = step.heads if isinstance(step, ops.RopeKvWrite) else heads
        value = b.value(step.out, constants["OUT_HEADS"] * step.head_dim)
        constants["OUT_ROW"], bound["out"] = value.stride, value.f32
    x = ceil_div(heads - constants["FIRST_HEAD"], constants["WG"] // lanes)
    b.add("heads", constants, bound, grid(x, b.tokens), _LABELS[type(step)])


def _norm_whole(step: ops.QkNorm, b: Builder) -> None:
    """A norm of all heads of q together, and of all of k."""
    q, k = step.heads * step.head_dim, step.kv_heads * step.head_dim
    source, value = b.values[step.qkv], b.value(step.out, q + 2 * k)
    constants = {"WG": 256, "ROW": source.stride, "OUT_ROW": value.stride, "Q": q, "K": k, "EPS": step.eps}
    weights = {
        name: b.context.vector(weight, offset=step.offset)
        for name, weight in (("q_norm", step.q_weight), ("k_norm", step.k_weight))
    }
    bound = {"qkv": source.f32, "out": value.f32, **weights}
    b.add("whole_norm", constants, bound, grid(b.tokens), _LABELS[ops.QkNorm])


def lower_attention(step: ops.Attention, b: Builder) -> None:
    """Attention of few tokens, split along the keys, or of more, with prompts in tiles."""
    constants = {
        **_cache_constants(step, b),
        "WINDOW": step.window or 0,
        "SCALE": step.scale,
        "SOFTCAP": step.softcap or 0,
        "Q_ROW": b.values[step.q].stride,
    }
    (_lower_split if b.section.vectors else _lower_mixed)(step, constants, b)


def _rotation(step: _HeadsOp, lanes: int, b: Builder) -> _Constants:
    rotates, normed = isinstance(step, _Rotating), isinstance(step, _Normed) and bool(step.q_weight)
    v_norm = isinstance(step, _Normed) and step.v_norm
    half = b.context.plan.tensors[step.table].shape[2] if isinstance(step, _Rotating) else 0
    beta, length = (step.beta, step.beta_length) if isinstance(step, _Rotating) else (0.0, 1)
    return {
        **_head_sizes(step),
        "ROTATE": rotates,
        "HALF": half,
        "HADAMARD": step.hadamard if isinstance(step, _Rotating) else 1,
        "BETA": beta,
        "BETA_LENGTH": length,
        "ROW": b.values[step.qkv].stride,
        "QK_NORM": normed,
        "V_NORM": v_norm,
        "EPS": step.eps if isinstance(step, _Normed) else 0.0,
        "FOURS": step.head_dim % 8 == 0 and half % 4 == 0,
        "SHUFFLED": b.context.config.subgroup >= lanes and half % 8 == 0,
    }


def _rotation_buffers(step: _HeadsOp, b: Builder) -> _Buffers:
    found: _Buffers = {"qkv": b.values[step.qkv].f32}
    if isinstance(step, _Rotating):
        found["table"] = b.values[step.table].f32
    if isinstance(step, _Normed):
        norms = {"q_norm": step.q_weight, "k_norm": step.k_weight}
        found |= {name: b.context.vector(weight, offset=step.offset) for name, weight in norms.items() if weight}
    return found


def _head_sizes(step: _HeadsOp | ops.Attention) -> _Constants:
    return {
        "HEADS": step.heads,
        "KV_HEADS": step.kv_heads,
        "HD": step.head_dim,
        "HDP": ceil_div(step.head_dim, 8) * 8,
    }


def _cache_constants(step: ops.KvWrite | ops.RopeKvWrite | ops.Attention, b: Builder) -> _Constants:
    plan, state = b.context.plan, b.context.state
    return {
        **_head_sizes(step),
        "BLOCK_SIZE": plan.block_size,
        "TABLE": state.tables[step.blocks],
        "COLUMNS": state.columns[step.blocks],
        "KV_BITS": BITS[plan.tensors[step.k_cache].dtype],
        "PAGE": page_nbytes(plan.tensors[step.k_cache]) // 4,
        "SEQUENCES": plan.sequences,
    }


def _cache_buffers(step: ops.KvWrite | ops.RopeKvWrite | ops.Attention) -> _Buffers:
    return {"k_cache": Ref("cache", step.k_cache), "v_cache": Ref("cache", step.v_cache)}


def _lower_split(step: ops.Attention, constants: _Constants, b: Builder) -> None:
    """Attention of every token, split along the keys; of one token with what comes before and after."""
    merging = b.index in b.schedule.merging
    sizes = [
        _sizes(step, b, columns=b.section.columns, long=long, left=merging and not long) for long in _lengths(step, b)
    ]
    rope = b.section.steps[b.schedule.rotating[b.index]] if b.index in b.schedule.rotating else None
    bound: _Buffers = {}
    if isinstance(rope, ops.RopeKvWrite):
        constants |= _rotation(rope, sizes[0]["RL"], b)
        bound |= _rotation_buffers(rope, b)
    f32, int8 = b.schedule.forms(step.out)
    value = b.value(step.out, step.heads * step.head_dim, f32=f32, int8=int8)
    constants |= {"FUSED": bool(rope), "OUT": f32, "EMIT": int8}
    _add_split(step, constants, sizes, bound, value, b, Split(b.section.capacity, b.tokens))


def _lower_mixed(step: ops.Attention, constants: _Constants, b: Builder) -> None:
    """Attention of decodes, split along the keys, then of the tokens of prompts, in tiles and in float32 first.

    Where there is one sequence, several tokens are a prompt's.
    """
    f32, int8 = b.schedule.forms(step.out)
    value = b.value(step.out, step.heads * step.head_dim, int8=int8)
    most = min(b.section.capacity, b.context.plan.sequences)
    if most > 1:
        sizes = [_sizes(step, b, columns=min(most, rules.FEW_ROWS), long=True, left=False)]
        decodes = {**constants, "FUSED": False, "OUT": f32, "EMIT": int8}
        _add_split(step, decodes, sizes, {}, value, b, Split(most, b.decodes))
    _add_tiled(step, constants, value, b)
    if int8:
        quantize_prompts(value, b)


class Split(NamedTuple):
    """Which tokens attention is split for: at most so many, and a workgroup for each in a batch."""

    capacity: int
    tokens: Axis


def _add_split(
    step: ops.Attention,
    constants: _Constants,
    sizes: list[_Constants],
    bound: _Buffers,
    value: DeviceTensor,
    b: Builder,
    split: Split,
) -> None:
    config, merging = b.context.config, b.index in b.schedule.merging
    finish = all(_finishes(step.head_dim, each["SLICE"], b) for each in sizes)
    parts = split.capacity * step.heads * max(each["MAX_SPLITS"] for each in sizes)
    partial, weight = b.take(parts * constants["HDP"] * 4), b.take(parts * 8)
    constants |= {"FINISH": finish, "STRIDE4": value.stride // 4}
    bound |= {**_cache_buffers(step), "q": b.values[step.q].f32, "partial": partial, "weight": weight}
    bound |= {"out": value.f32, "x8_out": value.x8, "xm_out": value.xm}
    if finish:
        bound["arrived"] = b.counters(split.capacity * max(step.kv_heads * each["SLICES"] for each in sizes))
    if merging and finish:
        most_keys = config.long_keys if len(sizes) > 1 else None
        value.splits = PartialAttention(partial, weight, _left({**constants, **sizes[0]}), most_keys)
        sizes[0]["FINISH"] = False
    made = [_dispatches(step, {**constants, **each}, bound, value, b, split) for each in sizes]
    for short, long in zip(made[0], made[-1], strict=True):
        b.dispatches.append(short if long is short else replace(short, long=long, long_keys=config.long_keys))
    for ref in () if value.splits else (partial, weight):
        b.give_back(ref)


def _sizes(step: ops.Attention, b: Builder, *, columns: int, long: bool, left: bool) -> _Constants:
    return rules.attend(
        b.context.config,
        heads=step.heads,
        kv_heads=step.kv_heads,
        head_dim=step.head_dim,
        columns=columns,
        long=long,
        left=left,
        cache=b.context.plan.tensors[step.k_cache].dtype,
    )


def _lengths(step: ops.Attention, b: Builder) -> list[bool]:
    """Whether attention runs over many keys: one token's may do either."""
    if b.section.columns > 1:
        return [True]
    context = b.context.plan.context
    most = min(context, step.window or context)
    return [False, True] if most > b.context.config.long_keys else [False]


def _dispatches(
    step: ops.Attention, constants: _Constants, bound: Bound, value: DeviceTensor, b: Builder, split: Split
) -> list[Dispatch]:
    """Attention in splits, and the merging of its splits where that is a dispatch of its own."""
    splits = KeySplits(constants["CHUNK"], constants["SPLIT_CHUNKS"], step.window or 0, constants["MAX_SPLITS"])
    where = grid(step.kv_heads * constants["SLICES"], splits, split.tokens)
    attend = b.dispatch("attend", constants, bound, where, "attend")
    if constants["FINISH"] or value.splits:
        return [attend]
    sizes = rules.merge(b.context.config, width=value.width, int8=bool(value.x8), columns=b.section.columns)
    groups = ceil_div(value.stride // 4, sizes["WG"])
    return [attend, b.dispatch("merge", {**constants, **sizes}, bound, grid(groups, split.tokens), "merge")]


def _finishes(head_dim: int, slice_: int, b: Builder) -> bool:
    """Whether attention's last workgroup merges the splits: whole blocks of 32 must belong to its heads."""
    return b.context.config.merged_attention and head_dim % 4 == 0 and slice_ * head_dim % 32 == 0


def _left(constants: _Constants) -> _Constants:
    """What a product has to know of the splits that attention leaves it."""
    return {"SPLITS": constants["MAX_SPLITS"]} | {
        name: constants[name] for name in ("CHUNK", "SPLIT_CHUNKS", "WINDOW", "HD", "HDP")
    }


def _add_tiled(step: ops.Attention, constants: _Constants, value: DeviceTensor, b: Builder) -> None:
    sizes = rules.attend_tiled(
        b.context.config,
        head_dim=step.head_dim,
        heads=step.heads,
        kv_heads=step.kv_heads,
        window=step.window or 0,
        cache=b.context.plan.tensors[step.k_cache].dtype,
    )
    bound = {**_cache_buffers(step), "q": b.values[step.q].f32, "out": value.f32}
    where = grid(step.heads, Axis(count="prompts", step=sizes["ROWS"]))
    b.add("attend_tiled", {**constants, **sizes, "STRIDE": value.stride}, bound, where, "attend prompts")
