"""A plan becomes dispatches: which kernel runs each step, in which variant, over which buffers.

One plan is lowered several times over the same weights and caches: for one token, for a few (matrix × vector), and
for many (matrix × matrix). What a step leaves behind is a `Value`: float32, or int8 blocks where only matrices in
packed formats read it, or both. Rewrites that only make sense on a GPU happen here:

- a norm before packed matrices is folded into the step that makes its input, which quantizes what it wrote times the
  norm's weights; the readers divide by the root of the mean square later (`deferred-norm`);
- a product of one token norms and rounds a short input itself, in every workgroup: no step before it needs to
  (`fused-rounding`), and over few keys merges the splits that attention leaves it (`fused-merge`);
- where weights are many, products of one token read a word of each page that a later one will want (`read-ahead`);
- for one token, norm and rotation of q and k, the cache write and attention are one kernel (`fused-attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halfbyte.gpu.lowering.attention import AttentionLowering
from halfbyte.gpu.lowering.value import Added, Splits, Target, Value, ceil_div, padded
from halfbyte.gpu.run.recorder import Buffer, Dimensions, Dispatch, Extent
from halfbyte.gpu.run.weights import Matrix, Piece
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops
from halfbyte.plan.plan import LOGITS

MOST_WORKGROUPS = 65535
MOST_INVOCATIONS = 1024
"""Of the largest workgroups that kernels take."""
ROW_TILE = 64
"""Rows of x that a matrix × matrix tile may touch: capacities are rounded up to it."""

Grid = Callable[[Extent], Dimensions]


@dataclass
class Lowering:
    """Lowers a run of steps for a number of tokens.

    Attributes:
        columns: Columns of the matrix × vector kernels; 0 for matrix × matrix.
        capacity: Tokens the activations have room for.
        inputs: Values made by other programs.
        rows: Whether these steps run over rows of logits, not tokens.
        values: By their names, those that have been made and not given back.
        steps, index: What is being lowered, and where.
        head_at: After lowering, the first dispatch that only logits need.
    """

    target: Target
    columns: int
    capacity: int
    inputs: dict[str, Value] = field(default_factory=dict)
    rows: bool = False

    def __post_init__(self) -> None:
        self.values: dict[str, Value] = dict(self.inputs)
        self.dispatches: list[Dispatch] = []
        self._free: dict[int, list[Buffer]] = {}
        self._folded: set[str] = set()
        self._attention = AttentionLowering(self)
        self.steps: Sequence[ops.Op] = ()
        self.index = self.head_at = 0

    def lower(self, steps: Sequence[ops.Op], *, keep: str = "") -> list[Dispatch]:
        """The dispatches of `steps`; the value called `keep` stays valid after them."""
        self.steps = steps
        last = self._last_reads(steps)
        for i, step in enumerate(steps):
            self.index = i
            getattr(self, f"_lower_{type(step).__name__}")(step)
            for name in {n for n in self.values if last.get(n, i) == i and n != keep and n not in self.inputs}:
                if name in last or name != LOGITS:
                    self._release(name)
        return self.dispatches

    def _last_reads(self, steps: Sequence[ops.Op]) -> dict[str, int]:
        """The last step that reads each tensor; attention reads for the step before it where the two are one kernel."""
        fused = self._attention.fused
        return {
            name: i + (fused and isinstance(step, ops.RopeKvWrite))
            for i, step in enumerate(steps)
            for name in step.inputs
        }

    def _readers(self, name: str) -> list[ops.Op]:
        return [step for step in self.steps if name in step.inputs]

    def _reads_int8(self, step: ops.Op) -> bool:
        """Whether a step can take its input as int8 blocks."""
        if not self.target.config.int8 or not isinstance(step, ops.Linear | ops.GatedLinear):
            return False
        return all(piece.storage.packed for piece in self.target.weights.matrix(step.weights).pieces)

    def _rounds(self, step: ops.Op) -> bool:
        """Whether a product of one token norms and rounds its float32 input itself; not of a row among others."""
        one = self.columns == 1 and not self.rows
        if not one or not self._reads_int8(step) or not isinstance(step, ops.Linear | ops.GatedLinear):
            return False
        matrix = self.target.weights.matrix(step.weights)
        return rules.rounds(self.target.config, outputs=matrix.rows, inputs=matrix.columns)

    def rounded(self, name: str) -> bool:
        """Whether one product reads a tensor, and rounds it itself."""
        readers = self._readers(name)
        return len(readers) == 1 and self._rounds(readers[0])

    def wanted(self, name: str) -> tuple[bool, bool]:
        """Whether readers of a tensor want it in float32, and as int8 blocks."""
        int8 = [self._reads_int8(step) and not self._rounds(step) for step in self._readers(name)]
        return not all(int8) or not int8, any(int8)

    def take(self, nbytes: int) -> Buffer:
        """Scratch memory, given back before if there is some of that size."""
        free = self._free.get(nbytes)
        return free.pop() if free else Buffer(self.target.device.buffer(nbytes, "activations"))

    def give_back(self, buffer: Buffer) -> None:
        """Let later steps use scratch memory."""
        self._free.setdefault(buffer.handle.size, []).append(buffer)

    def _release(self, name: str) -> None:
        value = self.values.pop(name)
        for buffer in value.buffers:
            if not any(buffer in other.buffers for other in self.values.values()):
                self.give_back(buffer)

    def value(self, name: str, width: int, *, f32: bool = True, int8: bool = False, eps: float | None = None) -> Value:
        """Make a value in scratch memory, in one form or both."""
        value = Value(width, eps=eps)
        values = self.capacity * value.stride
        if f32:
            value.f32 = self.take(values * 4)
        if int8:
            value.x8, value.xm = self.take(values), self.take(values // 2)
        self.values[name] = value
        return value

    def add(
        self, kernel: str, constants: dict[str, Any], buffers: dict[str, Buffer | None], grid: Grid, label: str
    ) -> None:
        """Append a dispatch."""
        self.dispatches.append(self.dispatch(kernel, constants, buffers, grid, label))

    def dispatch(
        self, kernel: str, constants: dict[str, Any], buffers: dict[str, Buffer | None], grid: Grid, label: str
    ) -> Dispatch:
        """A kernel for the step that is being lowered, with what every kernel is told and given."""
        common = {"SUBGROUP": self.target.config.subgroup, **self.target.layout.offsets}
        pipeline = self.target.pipelines.get(kernel, {**common, **constants})
        bound = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        bound["state"] = self.target.state
        return Dispatch(pipeline, bound, grid, label, self.steps[self.index])

    def _count(self, extent: Extent) -> int:
        return extent.rows if self.rows else extent.tokens

    def _lower_Embed(self, step: ops.Embed) -> None:  # noqa: N802
        matrix = self.target.weights.matrix((step.table,))
        norm = self._foldable_norm(step.out) if len(matrix.pieces) == 1 else None
        value = self.value(step.out, matrix.columns)
        folded = self._fold(norm, value) if norm else {}
        for piece in matrix.pieces:
            stored = _format(piece)
            sizes = rules.embed(
                self.target.config, width=matrix.columns, int8=bool(norm), columns=self.columns, format=stored["STORED"]
            )
            x = ceil_div(value.stride // 4, sizes["WG"])
            constants = {
                **sizes,
                "K": matrix.columns,
                "STRIDE4": value.stride // 4,
                "SCALE": step.scale,
                "ROW0": piece.first,
                "ROWS": piece.rows,
                "EMIT": bool(norm),
                **stored,
            }
            self.add(
                "embed",
                constants,
                {**piece.buffers, "out": value.f32, **folded},
                lambda e, x=x: (x, e.tokens, 1),  # type: ignore[misc]
                "embed",
            )

    def _lower_RopeTable(self, step: ops.RopeTable) -> None:  # noqa: N802
        half = self.target.plan.tensors[step.out].shape[2]
        value = Value(2 * half, f32=self.take(padded(self.capacity * 2 * half) * 4))
        self.values[step.out] = value
        buffers = {"inv_freq": self.target.constants[step.inv_freq], "out": value.f32}
        x = ceil_div(half, 64)
        self.add("rope_table", {"HALF": half, "FACTOR": step.factor}, buffers, lambda e: (x, e.tokens, 1), "rope table")

    def _foldable_norm(self, made: str) -> ops.RmsNorm | None:
        """The norm of a tensor that the step making it can prepare: the next step, read by packed matrices only."""
        if not self.columns or not self.target.config.deferred_norm:
            return None
        following = self.steps[self.index + 1 : self.index + 4]
        norm = next((step for step in following if not isinstance(step, ops.RopeTable | ops.Rows)), None)
        through = {step.out for step in following if isinstance(step, ops.Rows) and step.x == made and self._one_row()}
        if not isinstance(norm, ops.RmsNorm) or norm.residual or norm.x not in {made, *through}:
            return None
        f32, int8 = self.wanted(norm.out)
        width = self.target.plan.tensors[made].shape[1]
        return norm if int8 and not f32 and width % 32 == 0 else None

    def _one_row(self) -> bool:
        """Whether the one token is also the one row of logits."""
        return self.columns == 1 and not self.rows

    def _fold(self, norm: ops.RmsNorm, source: Value) -> dict[str, Buffer | None]:
        """Make the value of a norm folded into the step that writes `source`; the buffers that step needs for it."""
        value = self.value(norm.out, source.width, f32=False, int8=True, eps=norm.eps)
        self._folded.add(norm.out)
        weight = self.target.weights.vector(norm.weight, norm.offset)
        return {"norm": weight, "x8_out": value.x8, "xm_out": value.xm}

    def _lower_Rows(self, step: ops.Rows) -> None:  # noqa: N802
        source = self.values[step.x]
        self.values[step.out] = Value(source.width, f32=source.f32)
        self.head_at = len(self.dispatches)

    def _lower_RmsNorm(self, step: ops.RmsNorm) -> None:  # noqa: N802
        if step.out in self._folded:
            return
        second = self._second_norm(step)
        source = self.values[step.x]
        if self._left_to_readers(step, second, source):
            return
        gathered = any(isinstance(s, ops.Rows) and s.out == step.x for s in self.steps) and not self._one_row()
        f32, int8 = self.wanted(step.out)
        value = self.value(step.out, source.width, f32=f32, int8=int8 and not second)
        buffers = {
            "x": source.f32,
            "weight": self.target.weights.vector(step.weight, step.offset),
            "out": value.f32,
            "residual": self.values[step.residual].f32 if step.residual else None,
            "x8_out": value.x8,
            "xm_out": value.xm,
        }
        constants = {
            "GATHER": gathered,
            "NORM": True,
            "RESIDUAL": bool(step.residual),
            "OUT": bool(value.f32),
            "EPS": step.eps,
            "SECOND": bool(second),
            "OUT2": False,
            "EMIT": bool(value.x8),
        }
        if second:
            f32, int8 = self.wanted(second.out)
            after = self.value(second.out, source.width, f32=f32, int8=int8)
            self._folded.add(second.out)
            weight2 = self.target.weights.vector(second.weight, second.offset)
            buffers |= {"weight2": weight2, "out2": after.f32, "x8_out": after.x8, "xm_out": after.xm}
            constants |= {"OUT2": f32, "EMIT": int8}
        self._add_norm(constants, buffers, source, "norm")

    def _left_to_readers(self, step: ops.RmsNorm, second: ops.RmsNorm | None, source: Value) -> bool:
        """Leave a norm, or one with a residual and the norm that follows, to products that round their input."""
        last = second or step
        readers = self._readers(last.out)
        if not all(map(self._rounds, readers)):
            return False
        if step.residual and not (second and second.eps == step.eps and len(readers) == 1):
            return False
        vector = self.target.weights.vector
        value = Value(source.width, f32=source.f32, eps=last.eps, norm=vector(last.weight, last.offset))
        if step.residual:
            residual, total = self.values[step.residual], self.value(step.out, source.width)
            value.added = Added(vector(step.weight, step.offset), residual, total)
            self._folded.add(last.out)
        self.values[last.out] = value
        return True

    def _second_norm(self, step: ops.RmsNorm) -> ops.RmsNorm | None:
        """The norm that directly follows one with a residual: both are made in one pass."""
        following = self.steps[self.index + 1] if self.index + 1 < len(self.steps) else None
        if step.residual and isinstance(following, ops.RmsNorm) and following.x == step.out and not following.residual:
            return following
        return None

    def _add_norm(
        self, constants: dict[str, Any], buffers: dict[str, Buffer | None], source: Value, label: str
    ) -> None:
        sizes = rules.norm(self.target.config, width=source.width, columns=self.columns)
        shape = {"W": source.width, "STRIDE4": source.stride // 4}
        self.add("norm", {**sizes, **shape, **constants}, buffers, lambda e: (self._count(e), 1, 1), label)

    def quantize(self, value: Value) -> None:
        """Make the int8 blocks of a value from its float32."""
        value.x8, value.xm = (self.take(self.capacity * value.stride // share) for share in (1, 2))
        constants = dict.fromkeys(("GATHER", "NORM", "RESIDUAL", "OUT", "SECOND", "OUT2"), False) | {"EMIT": True}
        self._add_norm(constants, {"x": value.f32, "x8_out": value.x8, "xm_out": value.xm}, value, "quantize")

    def _lower_Linear(self, step: ops.Linear) -> None:  # noqa: N802
        matrix = self.target.weights.matrix(step.weights)
        whole = len(matrix.pieces) == 1 and matrix.rows % 32 == 0 and self._packed(matrix.pieces[0])
        norm = self._foldable_norm(step.out) if whole else None
        value = self.value(step.out, matrix.rows)
        buffers = {"residual": self.values[step.residual].f32 if step.residual else None, "out": value.f32}
        flags = {"GATED": False, "RESIDUAL": bool(step.residual), "OUT": True, "EMIT": bool(norm), "NORM": bool(norm)}
        if norm:
            buffers |= self._fold(norm, value)
        for piece in matrix.pieces:
            self._add_product(step, matrix, piece, flags, buffers, value.stride)

    def _lower_GatedLinear(self, step: ops.GatedLinear) -> None:  # noqa: N802
        matrix = self.target.weights.matrix(step.weights)
        f32, int8 = self.wanted(step.out)
        if len(matrix.pieces) > 1:
            self._gate_apart(step, matrix)
        else:
            packed = self._packed(matrix.pieces[0])
            emit = bool(self.columns and packed and int8 and not f32 and matrix.rows % 64 == 0)
            value = self.value(step.out, matrix.rows // 2, f32=not emit, int8=emit)
            flags = {
                "GATED": True,
                "RESIDUAL": False,
                "OUT": not emit,
                "EMIT": emit,
                "NORM": False,
                "ACTIVATION": step.activation,
            }
            buffers = {"out": value.f32, "x8_out": value.x8, "xm_out": value.xm}
            self._add_product(step, matrix, matrix.pieces[0], flags, buffers, value.stride)
        value = self.values[step.out]
        if int8 and not value.x8:
            self.quantize(value)

    def _gate_apart(self, step: ops.GatedLinear, matrix: Matrix) -> None:
        """A gated product whose matrix is in several pieces: the product, then the gate."""
        both = self.value(f"{step.out}.both", matrix.rows)
        flags = {"GATED": False, "RESIDUAL": False, "OUT": True, "EMIT": False, "NORM": False}
        for piece in matrix.pieces:
            self._add_product(step, matrix, piece, flags, {"out": both.f32}, both.stride)
        value = self.value(step.out, matrix.rows // 2)
        constants = {
            "WG": 64,
            "N": value.width,
            "X_STRIDE": both.stride,
            "STRIDE": value.stride,
            "ACTIVATION": step.activation,
        }
        x = ceil_div(value.width, 64)
        self.add("gate", constants, {"x": both.f32, "out": value.f32}, lambda e: (x, e.tokens, 1), "gate")

    def _packed(self, piece: Piece) -> bool:
        return piece.storage.packed and self.target.config.int8

    def _add_product(
        self,
        step: ops.Linear | ops.GatedLinear,
        matrix: Matrix,
        piece: Piece,
        flags: dict[str, Any],
        buffers: dict[str, Buffer | None],
        stride: int,
    ) -> None:
        x = self.values[step.x]
        int8, rounds = self._reads_int8(step), self._rounds(step)
        outputs = piece.rows // 2 if flags["GATED"] else piece.rows
        constants = {
            **_format(piece),
            **flags,
            "INT8": int8,
            "N": outputs,
            "FIRST": piece.first,
            "STRIDE": stride,
            "K": matrix.columns,
            "X_STRIDE": x.stride,
            "X_BLOCKS": x.stride // 32,
            "DEFERRED": x.eps is not None,
            "EPS": x.eps,
            "ROUNDS": rounds,
            "ADDED": bool(x.added),
        }
        taken = {"x8": x.x8, "xm": x.xm} if int8 and not rounds else {"x": x.f32, "x_norm": x.norm}
        if x.added:
            added = x.added
            taken |= {"x_weight": added.weight, "x_residual": added.residual.f32, "x_sum": added.sum.f32}
        label = f"{outputs * (2 if flags['GATED'] else 1)}×{matrix.columns}"
        if self.columns:
            ahead = self._ahead() if piece is matrix.pieces[0] else []
            if ahead:
                unread = self.take(4 * MOST_INVOCATIONS)
                taken |= {f"ahead{i}": buffer for i, buffer in enumerate(ahead)} | {"unread": unread}
                self.give_back(unread)
            constants["AHEAD"] = tuple((i, buffer.handle.size // 4) for i, buffer in enumerate(ahead))
            self._add_gemv(constants, {**piece.buffers, **buffers, **taken}, label, x.splits)
        else:
            self._add_gemm(constants, {**piece.buffers, **buffers, **taken}, label)

    def _ahead(self) -> list[Buffer]:
        """What a later product reads, if this one of one token is to ask for its pages; the last ask for the first.

        Of a matrix in pieces the first: a kernel may have 16 buffers on some devices.
        """
        target = self.target
        far = sum(tensor.nbytes for tensor in target.plan.of_kind("weight")) >= target.config.far_nbytes
        if not far or not target.config.read_ahead or not self._one_row():
            return []
        products = [step for step in self.steps if isinstance(step, ops.Linear | ops.GatedLinear)]
        here = next(i for i, step in enumerate(products) if step is self.steps[self.index])
        later = products[(here + rules.PRODUCTS_AHEAD) % len(products)]
        return list(target.weights.matrix(later.weights).pieces[0].buffers.values())

    def _add_gemv(
        self, constants: dict[str, Any], buffers: dict[str, Buffer | None], label: str, splits: Splits | None
    ) -> None:
        sizes = rules.gemv(
            self.target.config,
            outputs=constants["N"],
            blocks=constants["X_BLOCKS"],
            int8=constants["INT8"],
            gated=constants["GATED"],
            emit=constants["EMIT"],
            columns=self.columns,
            rounds=constants["ROUNDS"],
            format=constants["STORED"],
        )
        groups = ceil_div(constants["N"], sizes["WG"] // sizes["TEAM"] * sizes["ROWS"]) + bool(constants["AHEAD"])
        y = ceil_div(groups, MOST_WORKGROUPS)

        def grid(extent: Extent) -> Dimensions:
            return ceil_div(groups, y), y, 1

        constants = {**constants, **sizes, "SPLITS": 0, "PAGE": rules.PAGE_NBYTES // 4}
        if splits:
            left: dict[str, Buffer | None] = {"partial": splits.partial, "weight": splits.weight}
            few = self.dispatch("gemv", constants | splits.constants, buffers | left, grid, f"gemv {label}")
            if splits.most_keys is not None:
                many = self.dispatch("gemv", constants, buffers, grid, f"gemv {label}")
                few = replace(few, long=many, long_keys=splits.most_keys)
            self.dispatches.append(few)
        else:
            self.add("gemv", constants, buffers, grid, f"gemv {label}")

    def _add_gemm(self, constants: dict[str, Any], buffers: dict[str, Buffer | None], label: str) -> None:
        sizes = rules.gemm(
            self.target.config,
            rows=self.capacity,
            outputs=constants["N"],
            width=constants["K"],
            int8=constants["INT8"],
            gated=constants["GATED"],
            format=constants["STORED"],
        )
        x = ceil_div(constants["N"], 32 if constants["GATED"] else 64)
        tile = 16 * sizes["RM"]
        self.add(
            "gemm", {**constants, **sizes}, buffers, lambda e: (x, ceil_div(self._count(e), tile), 1), f"gemm {label}"
        )

    def _lower_RopeKvWrite(self, step: ops.RopeKvWrite) -> None:  # noqa: N802
        self._attention.lower_rope(step)

    def _lower_Attention(self, step: ops.Attention) -> None:  # noqa: N802
        self._attention.lower_attention(step)

    def _lower_Softcap(self, step: ops.Softcap) -> None:  # noqa: N802
        source = self.values[step.x]
        value = self.value(step.out, source.width)
        count = self.capacity * value.stride
        constants = {"WG": 256, "COUNT": count, "CAP": step.cap}
        x = min(ceil_div(count, 256), MOST_WORKGROUPS)
        self.add("softcap", constants, {"x": source.f32, "out": value.f32}, lambda e: (x, 1, 1), "softcap")


def _format(piece: Piece) -> dict[str, Any]:
    """The snippet of a piece's format, what it wants to know, and both as a name."""
    constants = piece.storage.constants
    stored = "-".join(map(str, (piece.storage.snippet, *constants.values())))
    return {"FORMAT": piece.storage.snippet, "STORED": stored, **constants}
