"""Runs a plan with the native core: each op becomes one native step over arrays that live here.

Loading goes through the weights once: plain ones are read where they lie (usually a memory map), packed
ones are repacked by all threads, and their part of the map is released. After that a run copies the
batch's few integers in, and Python is not entered again until the logits are there.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.cpu import _native, machine
from halfbyte.cpu.choose import choose
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.formats import Weight, WeightSource
from halfbyte.formats.dense import Dense
from halfbyte.mapped import MappedFile
from halfbyte.plan import Batch, Plan, Tensor, cache, ops
from halfbyte.plan.batch import Timing, block_bytes
from halfbyte.plan.drawing import ComputesAtOnce, Draw, Finished, Pending
from halfbyte.plan.plan import (
    HIDDEN,
    LOGITS,
    STATE_ADAPTERS,
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_SEQUENCES,
)

Float32 = NDArray[np.float32]

_DTYPES: dict[str, type[np.generic]] = {"f32": np.float32, "i32": np.int32}
_PER_TOKEN = (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS, STATE_ADAPTERS)
_ALIGNMENT = 64
_GROUPED = re.compile(r"(q\d+g)(\d+)z?")


class CpuExecutor(ComputesAtOnce):
    """The `Executor` protocol on the CPU.

    Args:
        threads: Threads to run on, the caller's included; as many as the machine lends this process if None.
        isa: Instruction set to use, one of `halfbyte.cpu.machine.describe().kernels`; the best one if None.
        activations: What packed weights are multiplied with: `int8`, rounded in blocks of 32, or `f32`.

    Attributes:
        choose_ns: Nanoseconds that choosing the tokens of the last `submit` took.

    Raises:
        UsageError: `threads` or `isa` is none that this machine can offer, or `activations` is neither.
        UnsupportedModelError: A weight is in a format that the core has no kernel for, or an op is unknown to it.
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
        count = _threads(threads)
        spin = count <= machine.processors()
        self._program = _native.Program(count, plan.context, _isa(isa), activations == "int8", spin)
        self._arrays = _allocate(plan)
        self._matrices: dict[str, _native.Matrix] = {}
        self._over_rows: set[str] = set()
        self._beside: list[int] = []
        self._files: set[MappedFile] = set()
        for i, step in enumerate(plan.steps):
            if isinstance(step, ops.Rows):
                self._lower_hidden(i)
            self._lower(step, self._axis(step))
        self._logits: Float32 = self._arrays[LOGITS]
        self._state_ns = self.choose_ns = 0

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
            InvalidModelError: A file that plain weights are read from has been cut short.
        """
        called = perf_counter_ns()
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        for name, values in batch.state().items():
            if name in self._arrays:
                self._set_state(name, values, tokens)
        self._state_ns = perf_counter_ns() - called
        self._program.run(tokens, rows, batch.hidden)
        for file in self._files:
            file.verify()
        return self._logits[:rows]

    def submit(self, batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        """Run one batch, and choose its tokens. Raises what `run` does."""
        logits = self.run(batch)
        called = perf_counter_ns()
        tokens = choose(self._program, logits, draws)
        self.choose_ns = perf_counter_ns() - called
        return Finished([tokens], self._arrays[HIDDEN][: len(batch.token_ids)] if batch.hidden else None)

    def read_blocks(self, name: str, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """A copy of blocks of a cache."""
        return block_bytes(self._arrays[name])[list(blocks)]

    def write_blocks(self, name: str, blocks: Sequence[int], values: NDArray[np.uint8]) -> None:
        """Copy into blocks of a cache."""
        block_bytes(self._arrays[name])[list(blocks)] = values

    def step_ns(self) -> NDArray[np.int64]:
        """Nanoseconds that each step of the plan took in the last run; 0 where it had nothing to do."""
        return np.delete(self._program.step_ns(), self._beside)

    def before_ns(self) -> dict[str, int]:
        """Nanoseconds of the last run before its first step: to fill the `state`, and to `start` the threads."""
        return {"state": self._state_ns, "start": self._program.start_ns}

    def _set_state(self, name: str, values: NDArray[np.int32], tokens: int) -> None:
        state = self._arrays[name]
        fits = values.shape == state.shape if values.ndim == 2 else len(values) <= len(state)
        if not fits or (name in _PER_TOKEN and len(values) != tokens):
            raise ValueError(f"{name} of shape {values.shape} does not fit {tokens} tokens and {state.shape}")
        state[: len(values)] = values

    def _lower_hidden(self, at: int) -> None:
        """Append what makes hidden states, where the stream of all tokens is still there."""
        for step in self._plan.hidden_steps:
            source = self._arrays[step.inputs[0]]
            self._arrays[step.outputs[0]] = _aligned(source.nbytes).view(source.dtype).reshape(source.shape)
            self._beside.append(at + len(self._beside))
            self._lower(step, "hidden")

    def _lower(self, step: ops.Op, axis: str) -> None:
        """Append the native step of an op, its fields as the core takes them."""
        op = type(step).__name__
        if op not in _native.ops():
            raise UnsupportedModelError(f"the CPU has no op {op}.", "Use device='reference', which has every op.")
        tensors = {*step.reads, *step.writes}
        fields = {
            field.name: self._tensors(value) if field.name in tensors else _plain(value)
            for field in dataclasses.fields(step)
            if (value := getattr(step, field.name)) not in (None, ())
        }
        self._program.step(op, axis, fields)

    def _axis(self, step: ops.Op) -> str:
        """What a step works on: `Rows`, and what takes the output of a step over rows of logits, on these."""
        over_rows = isinstance(step, ops.Rows) or not self._over_rows.isdisjoint(step.inputs)
        if over_rows:
            self._over_rows.update(step.outputs)
        return "rows" if over_rows else "tokens"

    def _tensors(self, names: str | tuple[str, ...]) -> Any:
        """What the core takes for a tensor; of several, the list of their matrices or their vectors end to end."""
        if isinstance(names, str):
            return self._tensor(names)
        found = [self._tensor(name) for name in names]
        return found if isinstance(found[0], _native.Matrix) else np.concatenate(found)

    def _tensor(self, name: str) -> Any:
        """A tensor's array; a weight is a matrix or, where it has one dimension, its values in float32."""
        if name in self._arrays:
            return self._arrays[name]
        matrix = len(self._plan.tensors[name].shape) == 2
        return self._matrix(name) if matrix else self._weights.weight(name).decode()

    def _matrix(self, name: str) -> _native.Matrix:
        """The weight as the core streams it, made once however many steps use it."""
        if name not in self._matrices:
            self._matrices[name] = self._load(self._weights.weight(name), name)
        return self._matrices[name]

    def _load(self, weight: Weight, name: str) -> _native.Matrix:
        family, group = _family(weight.format.name)
        if family not in _native.formats():
            raise _unsupported(weight, name)
        parts = {suffix: _bytes(part) for suffix, part in weight.parts.items()}
        scales, zeros = parts.pop(".scale", None), parts.pop(".zero", None)
        (codes,) = parts.values()
        rows, columns = weight.shape
        matrix = self._program.matrix(family, codes, scales, zeros, rows, columns, group)
        if isinstance(weight.format, Dense):
            self._files |= weight.files()
        else:
            self._weights.release(name)
        return matrix


def _plain(value: Any) -> Any:
    """A field that names no tensor, as the core takes it: whole numbers as an array."""
    return np.array(value, np.int32) if isinstance(value, tuple) else value


def _family(format_name: str) -> tuple[str, int]:
    """What the core calls a format, and the size of its groups: ("q4g", 64) for q4g64z, ("f16", 0) for f16."""
    grouped = _GROUPED.fullmatch(format_name)
    return (grouped[1], int(grouped[2])) if grouped else (format_name, 0)


def _unsupported(weight: Weight, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the CPU cannot run {weight.format.name} weights such as {name}.",
        f"It runs {', '.join(_native.formats())}; device='reference' runs every format, slowly.",
    )


def _threads(threads: int | None) -> int:
    if threads is None:
        return machine.default_threads()
    most = machine.most_threads()
    if not 1 <= threads <= most:
        raise UsageError(
            f"threads is {threads}.", f"Give a number from 1 to {most}; this machine has {os.cpu_count()} processors."
        )
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
    if tensor.kind == "cache":
        items = cache.empty(tensor.dtype, tensor.shape)
        return items if items.dtype.names is None else items.view(np.uint8)
    dtype = _DTYPES[tensor.dtype]
    if tensor.kind == "state":
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
