"""Lowers attention and what belongs to it: rotation, cache writes, splits along the keys, sizes for few and many."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from halfbyte.gpu.lowering.value import Splits, Value, ceil_div
from halfbyte.gpu.run.recorder import Buffer, Dimensions, Dispatch, Extent
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops

if TYPE_CHECKING:
    from halfbyte.gpu.lowering.lower import Lowering


class AttentionLowering:
    """The part of a `Lowering` that knows caches."""

    def __init__(self, low: Lowering) -> None:
        self._low = low
        self._arrived: Buffer | None = None

    def lower_rope(self, step: ops.RopeKvWrite) -> None:
        """Rotation and the cache write, unless attention does both."""
        if self.fused:
            self._low.values[step.out] = self._low.values[step.qkv]
            return
        value = self._low.value(step.out, step.heads * step.head_dim)
        lanes = rules.head_lanes(step.head_dim)
        constants = {**self._rotation(step, lanes), "WG": max(64, lanes), "TL": lanes, "Q_ROW": value.stride}
        x = ceil_div(step.heads + 2 * step.kv_heads, constants["WG"] // lanes)
        buffers = {**self._rotation_buffers(step), **self._cache_buffers(step), "out": value.f32}
        self._low.add("rope_kv", constants, buffers, lambda e: (x, e.tokens, 1), "rope and cache")

    def _sizes(self, step: ops.RopeKvWrite | ops.Attention, *, long: bool, left: bool = False) -> dict[str, Any]:
        return rules.attend(
            self._low.target.config,
            heads=step.heads,
            kv_heads=step.kv_heads,
            head_dim=step.head_dim,
            columns=self._low.columns,
            long=long,
            left=left,
            cache=self._low.target.plan.tensors[step.k_cache].dtype,
        )

    @property
    def fused(self) -> bool:
        """Whether attention rotates and writes the cache itself."""
        return self._low.columns == 1 and self._low.target.config.fused_attention

    def _rotation(self, step: ops.RopeKvWrite, lanes: int) -> dict[str, Any]:
        half = self._low.target.plan.tensors[step.table].shape[2]
        return {
            **self._cache_constants(step, step.blocks, step.k_cache),
            "HALF": half,
            "ROW": self._low.values[step.qkv].stride,
            "QK_NORM": bool(step.q_weight),
            "EPS": step.eps,
            "FOURS": step.head_dim % 8 == 0 and half % 4 == 0,
            "SHUFFLED": self._low.target.config.subgroup >= lanes and half % 8 == 0,
        }

    def _rotation_buffers(self, step: ops.RopeKvWrite) -> dict[str, Buffer | None]:
        vector = self._low.target.weights.vector
        norms = {"q_norm": step.q_weight, "k_norm": step.k_weight}
        return {
            "qkv": self._low.values[step.qkv].f32,
            "table": self._low.values[step.table].f32,
            **{name: vector(weight, step.offset) if weight else None for name, weight in norms.items()},
        }

    def _cache_constants(self, step: Any, blocks: str, cache: str) -> dict[str, Any]:
        plan = self._low.target.plan
        return {
            "HEADS": step.heads,
            "KV_HEADS": step.kv_heads,
            "HD": step.head_dim,
            "HDP": -(-step.head_dim // 8) * 8,
            "BLOCK_SIZE": plan.block_size,
            "TABLE": self._low.target.layout.tables[blocks],
            "COLUMNS": plan.tensors[blocks].shape[1],
            "F16": plan.tensors[cache].dtype == "f16",
            "SEQUENCES": plan.sequences,
        }

    def _cache_buffers(self, step: Any) -> dict[str, Buffer | None]:
        return {"k_cache": self._low.target.caches[step.k_cache], "v_cache": self._low.target.caches[step.v_cache]}

    def lower_attention(self, step: ops.Attention) -> None:
        """Attention of few tokens, split along the keys, or of many, in tiles."""
        constants = {
            **self._cache_constants(step, step.blocks, step.k_cache),
            "WINDOW": step.window or 0,
            "SCALE": step.scale,
            "SOFTCAP": step.softcap or 0,
            "Q_ROW": self._low.values[step.q].stride,
        }
        if self._low.columns:
            self._split(step, constants)
        else:
            self._tiled(step, constants)

    def _split(self, step: ops.Attention, constants: dict[str, Any]) -> None:
        left = self._low.target.config.fused_merge and self._low.rounded(step.out)
        sizes = [self._sizes(step, long=long, left=left and not long) for long in self._lengths(step)]
        finish = all(self._finishes(step.head_dim, each["SLICE"]) for each in sizes)
        fused = self.fused
        parts = self._low.capacity * step.heads * max(each["MAX_SPLITS"] for each in sizes)
        partial, weight = self._low.take(parts * constants["HDP"] * 4), self._low.take(parts * 8)
        buffers = {**self._cache_buffers(step), "q": self._low.values[step.q].f32, "partial": partial, "weight": weight}
        if fused:
            rope = self._low.steps[self._low.index - 1]
            if not isinstance(rope, ops.RopeKvWrite):
                raise TypeError(f"attention follows {type(rope).__name__}, not RopeKvWrite")
            constants |= self._rotation(rope, sizes[0]["RL"])
            buffers |= self._rotation_buffers(rope)
        f32, int8 = self._low.wanted(step.out)
        value = self._low.value(step.out, step.heads * step.head_dim, f32=f32, int8=int8)
        constants |= {"FUSED": fused, "FINISH": finish, "STRIDE4": value.stride // 4, "OUT": f32, "EMIT": int8}
        buffers |= {"out": value.f32, "x8_out": value.x8, "xm_out": value.xm}
        if finish:
            buffers["arrived"] = self._counters(
                self._low.capacity * max(step.kv_heads * each["SLICES"] for each in sizes)
            )
        threshold = self._low.target.config.long_keys
        if left and finish:
            most_keys = threshold if len(sizes) > 1 else None
            value.splits = Splits(partial, weight, _left({**constants, **sizes[0]}), most_keys)
            sizes[0]["FINISH"] = False
        made = [self._dispatches(step, {**constants, **each}, buffers, value) for each in sizes]
        for short, long in zip(made[0], made[-1], strict=True):
            self._low.dispatches.append(short if long is short else replace(short, long=long, long_keys=threshold))
        for buffer in () if value.splits else (partial, weight):
            self._low.give_back(buffer)

    def _lengths(self, step: ops.Attention) -> list[bool]:
        """Whether attention runs over many keys: one token's may do either."""
        if self._low.columns > 1:
            return [True]
        most = min(self._low.target.plan.context, step.window or self._low.target.plan.context)
        return [False, True] if most > self._low.target.config.long_keys else [False]

    def _dispatches(
        self, step: ops.Attention, constants: dict[str, Any], buffers: dict[str, Buffer | None], value: Value
    ) -> list[Dispatch]:
        """Attention of few tokens, and the merging of its splits where that is a dispatch of its own."""
        x, window = step.kv_heads * constants["SLICES"], step.window

        def grid(extent: Extent) -> Dimensions:
            return x, _splits(extent, window, constants), extent.tokens

        attend = self._low.dispatch("attend", constants, buffers, grid, "attend")
        if constants["FINISH"] or value.splits:
            return [attend]
        sizes = rules.merge(self._low.target.config, width=value.width, int8=bool(value.x8), columns=self._low.columns)
        groups = ceil_div(value.stride // 4, sizes["WG"])
        merge = {**constants, **sizes}
        return [attend, self._low.dispatch("merge", merge, buffers, lambda e: (groups, e.tokens, 1), "merge")]

    def _finishes(self, head_dim: int, slice_: int) -> bool:
        """Whether attention's last workgroup merges the splits: whole blocks of 32 must belong to its heads."""
        return self._low.target.config.merged_attention and head_dim % 4 == 0 and slice_ * head_dim % 32 == 0

    def _counters(self, count: int) -> Buffer:
        """Counters that are zero between dispatches, of which each leaves them so."""
        if self._arrived is None or self._arrived.handle.size < count * 4:
            self._arrived = Buffer(self._low.target.device.buffer(count * 4, "counters"))
        return self._arrived

    def _tiled(self, step: ops.Attention, constants: dict[str, Any]) -> None:
        cache = self._low.target.plan.tensors[step.k_cache].dtype
        sizes = rules.attend_tiled(
            self._low.target.config,
            head_dim=step.head_dim,
            heads=step.heads,
            kv_heads=step.kv_heads,
            window=step.window or 0,
            cache=cache,
        )
        value = self._low.value(step.out, step.heads * step.head_dim)
        buffers = {**self._cache_buffers(step), "q": self._low.values[step.q].f32, "out": value.f32}
        self._low.add(
            "attend_tiled",
            {**constants, **sizes, "STRIDE": value.stride},
            buffers,
            lambda e: (step.heads, ceil_div(e.tokens, sizes["ROWS"]), 1),
            "attend",
        )
        if self._low.wanted(step.out)[1]:
            self._low.quantize(value)


def _left(constants: dict[str, Any]) -> dict[str, Any]:
    """What a product has to know of the splits that attention leaves it."""
    return {"SPLITS": constants["MAX_SPLITS"]} | {
        name: constants[name] for name in ("CHUNK", "SPLIT_CHUNKS", "WINDOW", "HD", "HDP")
    }


def _splits(extent: Extent, window: int | None, sizes: dict[str, Any]) -> int:
    """The most that `split_count` in splits.wgsl gives."""
    chunks = ceil_div(extent.keys, sizes["CHUNK"])
    if window:
        chunks = min(chunks, ceil_div(window - 1, sizes["CHUNK"]) + 1)
    return int(max(1, min(sizes["MAX_SPLITS"], ceil_div(chunks, sizes["SPLIT_CHUNKS"]))))
