"""Runs a plan with the native core: each op becomes one native step over arrays that live here.

Loading goes through the weights once: plain ones are read where they lie (usually a memory map), packed
ones are repacked by all threads, and their part of the map is released. After that a run copies the
batch's few integers in, and Python is not entered again until the logits are there.
"""

from __future__ import annotations

from functools import singledispatchmethod
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.cpu import _native, machine
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.formats import Weight, WeightSource
from halfbyte.formats.dense import Dense
from halfbyte.formats.ggml import BLOCKS, BlockFormat
from halfbyte.formats.q3g import Q3G
from halfbyte.formats.q4g import Q4G
from halfbyte.formats.q8g import Q8G
from halfbyte.plan import Batch, Plan, Tensor, ops
from halfbyte.plan.batch import Timing
from halfbyte.plan.plan import LOGITS, STATE_IDS, STATE_POSITIONS, STATE_ROPE_SETS, STATE_SEQUENCES

Float32 = NDArray[np.float32]

_DTYPES: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "i32": np.int32}
_PER_TOKEN = (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS)
_ALIGNMENT = 64


class CpuExecutor:
    """The `Executor` protocol on the CPU.

    Args:
        threads: Threads to run on, the caller's included; as many as the machine lends this process if None.
        isa: Instruction set to use, one of `halfbyte.cpu.machine.describe().kernels`; the best one if None.
        activations: What packed weights are multiplied with: `int8`, rounded in blocks of 32, or `f32`.

    Raises:
        UsageError: `threads` or `isa` is none that this machine can offer, or `activations` is neither.
        UnsupportedModelError: A weight is in a format that the core has no kernel for.
    """

    def __init__(
        self,
        plan: Plan,
        weights: WeightSource,
        *,
        threads: int | None = None,
        isa: str | None = None,
        activations: str = "int8",
    ) -> None:
        if activations not in ("int8", "f32"):
            raise UsageError(f"activations {activations!r} are unknown.", "They are int8 or f32.")
        self._plan = plan
        self._weights = weights
        self._program = _native.Program(_threads(threads), plan.context, _isa(isa), activations == "int8")
        self._arrays = _allocate(plan)
        self._matrices: dict[str, _native.Matrix] = {}
        self._over_rows: set[str] = set()
        for step in plan.steps:
            self._lower(step)
        self._logits: Float32 = self._arrays[LOGITS]
        self._state_ns = 0

    @property
    def plan(self) -> Plan:
        """The plan it runs."""
        return self._plan

    @property
    def threads(self) -> int:
        """Threads it runs on."""
        return self._program.threads

    @property
    def isa(self) -> str:
        """The instruction set it uses."""
        return self._program.isa

    @property
    def timing(self) -> Timing | None:
        """Each step is timed."""
        return "steps"

    @property
    def about(self) -> str:
        """Nothing beyond what `halfbyte doctor` says of the processor."""
        return ""

    def counters(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def busy_s(self) -> float | None:
        """Seconds that the steps of the last run took."""
        return float(self.step_ns().sum()) * 1e-9

    def close(self) -> None:
        """Free weights, caches and threads."""
        self.__dict__.clear()

    def run(self, batch: Batch) -> Float32:
        """Run one batch; logits `[r, vocab_size]`, which the next call overwrites.

        Raises:
            ValueError: The batch exceeds the plan's capacities or points outside the model or its caches.
        """
        called = perf_counter_ns()
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        for name, values in batch.state().items():
            self._set_state(name, values, tokens)
        self._state_ns = perf_counter_ns() - called
        self._program.run(tokens, rows)
        return self._logits[:rows]

    def step_ns(self) -> NDArray[np.int64]:
        """Nanoseconds that each step of the plan took in the last run; 0 where it had nothing to do."""
        return self._program.step_ns()

    def before_ns(self) -> dict[str, int]:
        """Nanoseconds of the last run before its first step: to fill the `state`, and to `start` the threads."""
        return {"state": self._state_ns, "start": self._program.start_ns}

    def _set_state(self, name: str, values: NDArray[np.int32], tokens: int) -> None:
        state = self._arrays[name]
        fits = values.shape == state.shape if values.ndim == 2 else len(values) <= len(state)
        if not fits or (name in _PER_TOKEN and len(values) != tokens):
            raise ValueError(f"{name} of shape {values.shape} does not fit {tokens} tokens and {state.shape}")
        state[: len(values)] = values

    def _matrix(self, name: str) -> _native.Matrix:
        """The weight as the core streams it, made once however many steps use it."""
        if name not in self._matrices:
            self._matrices[name] = self._load(self._weights.weight(name), name)
        return self._matrices[name]

    def _load(self, weight: Weight, name: str) -> _native.Matrix:
        rows, columns = weight.shape
        match weight.format:
            case Dense(format_name):
                return _native.dense_matrix(_bytes(weight.parts[""]), format_name, rows, columns)
            case Q3G(group) | Q4G(group) | Q8G(group):
                codes, scales = _bytes(weight.parts[".q"]), _bytes(weight.parts[".scale"])
                zeros = _bytes(weight.parts[".zero"]) if ".zero" in weight.parts else None
                bits = weight.format.bits
                matrix = self._program.packed_matrix(codes, scales, zeros, rows, columns, group, bits)
            case BlockFormat("q4_k" | "q6_k" as format_name):
                matrix = self._program.block_matrix(_bytes(weight.parts[BLOCKS]), format_name, rows, columns)
            case _:
                raise _unsupported(weight, name)
        self._weights.release(name)
        return matrix

    def _vector(self, name: str) -> Float32:
        """A weight of one dimension in float32."""
        return self._weights.weight(name).decode()

    def _optional(self, name: str | None) -> Any:
        return None if name is None else self._arrays[name]

    def _follows_rows(self, step: ops.Op, name: str) -> bool:
        """Whether a step works on rows of logits, because its input does; its outputs then do too."""
        over_rows = name in self._over_rows
        if over_rows:
            self._over_rows.update(step.outputs)
        return over_rows

    def _paging(self, step: ops.KvWrite | ops.RopeKvWrite | ops.Attention) -> Any:
        return tuple(self._arrays[name] for name in (step.positions, step.sequences, step.blocks))

    def _caches(self, step: ops.KvWrite | ops.RopeKvWrite | ops.Attention) -> Any:
        return self._arrays[step.k_cache], self._arrays[step.v_cache]

    @singledispatchmethod
    def _lower(self, step: ops.Op) -> None:
        """Append the native step of an op."""
        raise ValueError(f"the CPU core has no {type(step).__name__}")

    @_lower.register
    def _(self, step: ops.Embed) -> None:
        a = self._arrays
        self._program.embed(a[step.ids], self._matrix(step.table), a[step.out], step.scale)

    @_lower.register
    def _(self, step: ops.RopeTable) -> None:
        a = self._arrays
        table = _flat_rows(a[step.out])
        self._program.rope_table(a[step.positions], a[step.sets], a[step.inv_freq], table, step.factor)

    @_lower.register
    def _(self, step: ops.RmsNorm) -> None:
        a = self._arrays
        self._program.rms_norm(
            self._follows_rows(step, step.x), a[step.x], self._vector(step.weight), a[step.out], step.eps, step.offset,
            self._optional(step.residual),
        )  # fmt: skip

    @_lower.register
    def _(self, step: ops.Linear) -> None:
        a, matrices = self._arrays, [self._matrix(name) for name in step.weights]
        bias = np.concatenate([self._vector(name) for name in step.bias]) if step.bias else None
        self._program.linear(
            self._follows_rows(step, step.x), a[step.x], matrices, bias, a[step.out], self._optional(step.residual)
        )

    @_lower.register
    def _(self, step: ops.GatedLinear) -> None:
        matrices = [self._matrix(name) for name in step.weights]
        a = self._arrays
        self._program.gated_linear(self._follows_rows(step, step.x), a[step.x], matrices, a[step.out], step.activation)

    @_lower.register
    def _(self, step: ops.GatedActivation) -> None:
        a = self._arrays
        self._program.gated_activation(self._follows_rows(step, step.x), a[step.x], a[step.out], step.activation)

    @_lower.register
    def _(self, step: ops.Add) -> None:
        a = self._arrays
        self._program.add(self._follows_rows(step, step.x), a[step.x], a[step.y], a[step.out])

    @_lower.register
    def _(self, step: ops.Softcap) -> None:
        a = self._arrays
        self._program.softcap(self._follows_rows(step, step.x), a[step.x], a[step.out], step.cap)

    @_lower.register
    def _(self, step: ops.Rows) -> None:
        a = self._arrays
        self._program.rows(a[step.x], a[step.rows], a[step.out])
        self._over_rows.add(step.out)

    @_lower.register
    def _(self, step: ops.QkNorm) -> None:
        a, weights = self._arrays, (self._vector(step.q_weight), self._vector(step.k_weight))
        self._program.qk_norm(_heads(step), a[step.qkv], weights, a[step.out], step.eps, step.offset)

    @_lower.register
    def _(self, step: ops.Rope) -> None:
        a = self._arrays
        self._program.rope(_heads(step), a[step.qkv], _flat_rows(a[step.table]), a[step.out])

    @_lower.register
    def _(self, step: ops.KvWrite) -> None:
        self._program.kv_write(_heads(step), self._arrays[step.qkv], self._paging(step), self._caches(step))

    @_lower.register
    def _(self, step: ops.RopeKvWrite) -> None:
        a, weights = self._arrays, None
        if step.q_weight is not None and step.k_weight is not None:
            weights = (self._vector(step.q_weight), self._vector(step.k_weight))
        self._program.rope_kv_write(
            _heads(step), a[step.qkv], _flat_rows(a[step.table]), weights, step.eps, step.offset, self._paging(step),
            self._caches(step), a[step.out],
        )  # fmt: skip

    @_lower.register
    def _(self, step: ops.Attention) -> None:
        a = self._arrays
        self._program.attention(
            _heads(step), a[step.q], self._caches(step), self._paging(step), a[step.out], step.scale, step.window or 0,
            step.softcap or 0.0,
        )  # fmt: skip


def _unsupported(weight: Weight, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the CPU cannot run {weight.format.name} weights such as {name}.",
        "It runs f32, f16, bf16, q3g, q4g, q8g, q4_k and q6_k; `--device reference` runs every format, slowly.",
    )


def _threads(threads: int | None) -> int:
    if threads is None:
        return machine.default_threads()
    if not 1 <= threads <= machine.MOST_THREADS:
        raise UsageError(f"threads is {threads}.", f"It is a number from 1 to {machine.MOST_THREADS}.")
    return threads


def _isa(isa: str | None) -> str:
    if isa is not None and isa not in _native.isas():
        raise UsageError(f"instruction set {isa!r} is not available.", f"This machine has {', '.join(_native.isas())}.")
    return isa or ""


def _allocate(plan: Plan) -> dict[str, NDArray[Any]]:
    """Memory for every tensor of the plan but its weights; caches take none until they are written."""
    arena = _aligned(plan.arena_nbytes)
    return {name: _array(plan, tensor, arena) for name, tensor in plan.tensors.items() if tensor.kind != "weight"}


def _array(plan: Plan, tensor: Tensor, arena: NDArray[np.uint8]) -> NDArray[Any]:
    if tensor.kind == "constant":
        return np.ascontiguousarray(plan.constants[tensor.name], np.float32)
    dtype = _DTYPES[tensor.dtype]
    if tensor.kind in ("state", "cache"):
        return np.zeros(tensor.shape, dtype)
    memory = _aligned(tensor.nbytes) if tensor.offset is None else arena[tensor.offset :]
    return memory[: tensor.nbytes].view(dtype).reshape(tensor.shape)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialized bytes that start at a cache line."""
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def _bytes(part: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The bytes of an array, in place where it is contiguous; they may lie at any address."""
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def _flat_rows(array: NDArray[Any]) -> NDArray[Any]:
    """[T, 2, D/2] as [T, D]."""
    return array.reshape(len(array), -1)


def _heads(step: ops.QkNorm | ops.Rope | ops.KvWrite | ops.RopeKvWrite | ops.Attention) -> tuple[int, int, int]:
    return step.heads, step.kv_heads, step.head_dim
