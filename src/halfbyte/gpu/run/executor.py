"""Runs plans on a GPU.

A plan is lowered to programs as they are needed: for 1, 2, 4, 8 and many tokens, and for the logits of 1, 2, 4, 8 and
many rows. All share the weights, the caches and one small state buffer that holds the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import numpy as np

from halfbyte.formats import WeightSource
from halfbyte.gpu.device.clock import PassClock
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.device.staging import Staging
from halfbyte.gpu.lowering.lower import ROW_TILE, Lowering
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.lowering.value import Target, Value
from halfbyte.gpu.run import budget
from halfbyte.gpu.run.caches import Caches
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.recorder import Buffer, Command, Extent, PassHook, Program, Recorder
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.variants import KernelConfig, choose
from halfbyte.plan import Batch, Plan
from halfbyte.plan.batch import Float32, Int32, Timing
from halfbyte.plan.fuse import fuse
from halfbyte.plan.ops import Rows
from halfbyte.plan.plan import LOGITS

COLUMNS = (1, 2, 4, 8)
"""Token counts with matrix × vector kernels of their own; beyond, matrix × matrix."""


class GpuExecutor:
    """The `Executor` protocol through WebGPU.

    Args:
        plan: What to run; fused here if it is not.
        weights: Where its weights come from; each is uploaded once.
        device: An open device.
        off: Names of kernel variants not to use: those that the self-test found wrong.
        tuning: Sizes of kernels that were measured on the device.
        activations: What packed weights are multiplied with: `int8`, rounded in blocks of 32, or `f32`.
        pipelines: The device's compiled kernels, where another executor has some already.
        free_memory: Bytes that it may take; unknown if None.
        progress: Called with the bytes uploaded so far.

    Raises:
        DeviceError: The model does not fit the GPU.
    """

    def __init__(
        self,
        plan: Plan,
        weights: WeightSource,
        *,
        device: Device,
        off: Collection[str],
        tuning: Tuning,
        activations: str = "int8",
        pipelines: Pipelines | None = None,
        free_memory: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.plan = fuse(plan)
        self.device = device
        self.off = frozenset(off)
        unwanted = self.off | ({"int8"} if activations != "int8" else set())
        self.config = choose(self.device.capabilities, off=unwanted, tuning=tuning)
        budget.check(self.plan, self.device, free_memory)
        self.layout = StateLayout(self.plan)
        self._caches = Caches(self.device, self.plan)
        self.recorder = Recorder(self.device)
        store = WeightStore(self.device, self.plan, weights, progress=progress)
        constants = {name: store.constant(values, name) for name, values in self.plan.constants.items()}
        state = Buffer(self.device.buffer(self.layout.size * 4, "state"))
        self.target = Target(
            self.device,
            self.plan,
            pipelines or Pipelines(self.device),
            store,
            self.layout,
            state,
            self._caches.buffers,
            constants,
            self.config,
        )
        self._split = next(i for i, step in enumerate(self.plan.steps) if isinstance(step, Rows))
        self._bodies: dict[int, tuple[Program, Value]] = {}
        self._heads: dict[tuple[int, int], tuple[Program, Value]] = {}
        self._single: tuple[Program, int, Value] | None = self.lower_single()
        self._staging: dict[int, Staging] = {}

    def with_config(self, config: KernelConfig) -> GpuExecutor:
        """Another executor with other kernels over the same weights, caches and state; not to be run in turns."""
        other = copy(self)
        other.config, other.target = config, replace(self.target, config=config)
        other._bodies, other._heads, other._single = {}, {}, None
        return other

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the kernels that answering takes: for prompts, and for as many sequences as there can be at once.

        Args:
            progress: Called with the kernels made, and all of them.
        """
        several = [columns for columns in COLUMNS if 1 < columns < 2 * self.plan.sequences]
        programs = self.begin([(self.plan.tokens, 1), *zip(several, several, strict=True)])
        kernels = list({id(k): k for program in programs for d in program.dispatches for k in d.kernels}.values())
        for done, kernel in enumerate(kernels):
            if progress:
                progress(done, len(kernels))
            kernel.wait()

    def begin(self, batches: Iterable[tuple[int, int]]) -> list[Program]:
        """The programs for batches of so many tokens and rows of logits; other threads still compile their kernels."""
        programs = [self.single[0]]
        for tokens, rows in batches:
            columns = _columns(tokens)
            programs += [self._body(columns)[0], self._head(columns, _columns(rows))[0]]
        return programs

    @property
    def threads(self) -> int:
        """CPU threads that compute: none of its own, only the caller's waits."""
        return 1

    @property
    def timing(self) -> Timing | None:
        """Each dispatch is timed inside `traced`."""
        return "dispatches"

    def busy_s(self) -> float | None:
        """Not told: `counters` has `wait_s`."""
        return None

    @property
    def about(self) -> str:
        """The GPU, how it is reached, and what the self-test said."""
        adapter = self.device.adapter
        off = f"without {', '.join(sorted(self.off))}" if self.off else "in all its kernels"
        return f"{adapter.name} ({adapter.backend}, {adapter.driver}) passed the self-test {off}"

    def close(self) -> None:
        """Let go of the device and all that is on it."""
        self.device.close()

    @property
    def single(self) -> tuple[Program, int, Value]:
        """The program of one token, where its head begins, and its logits."""
        self._single = self._single or self.lower_single()
        return self._single

    @property
    def cache_nbytes(self) -> int:
        """Bytes that the caches take now; they grow with the conversation."""
        return self._caches.nbytes

    def run(self, batch: Batch) -> Float32:
        """Run one batch; logits `[r, vocab_size]`.

        Raises:
            DeviceError: The device failed.
        """
        self.load(batch)
        commands, logits = self._commands(batch)
        rows = len(batch.logit_rows)
        if not rows:
            self.recorder.submit(commands)
            return np.zeros((0, self.plan.tensors[LOGITS].shape[1]), np.float32)
        staging = self._reader(rows, logits)
        if logits.f32 is None:
            raise TypeError("logits are float32")
        submission = self.recorder.submit(
            commands, [(logits.f32.handle, 0, staging.buffer, 0, rows * logits.stride * 4)]
        )
        staging.request(submission)
        values = staging.take(rows * logits.stride * 4).view(np.float32)
        return values.reshape(rows, logits.stride)[:, : logits.width]

    def counters(self) -> dict[str, float]:
        """What has been counted since it was made: dispatches, submits, seconds waited; while timed, GPU seconds."""
        clock = self.recorder.clock
        counted = {
            "dispatches": self.recorder.dispatches,
            "submits": self.recorder.submits,
            "wait_s": self.device.waited_s,
        }
        return counted | ({"gpu_s": clock.seconds()} if clock else {})

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count GPU seconds inside.

        Raises:
            DeviceError: The device has no timestamps.
        """
        clock = self.recorder.clock = PassClock(self.device)
        try:
            yield
        finally:
            self.recorder.clock = None
            clock.close()

    @contextmanager
    def hooked(self, hook: PassHook) -> Iterator[None]:
        """Let a hook see every pass inside, and when the host waits."""
        self.recorder.hook, self.device.waits = hook, hook.waits
        try:
            yield
        finally:
            self.recorder.hook = self.device.waits = None

    def load(self, batch: Batch) -> None:
        """Put a batch into the state buffer, the caches grown to hold its blocks."""
        self._caches.reserve(batch.block_tables, self.recorder)
        self.device.write(self.target.state.handle, 0, self.layout.fill(batch))

    def load_tables(self, tables: Mapping[str, Int32]) -> None:
        """Put new block tables into the state buffer, the caches grown to hold their blocks."""
        self._caches.reserve(tables, self.recorder)
        for name, at in self.layout.tables.items():
            self.device.write(self.target.state.handle, at * 4, self.layout.table(name, tables[name]))

    def _commands(self, batch: Batch) -> tuple[list[Command], Value]:
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        extent = Extent(tokens, rows, int(batch.positions.max()) + 1)
        if tokens == 1 and rows <= 1:
            program, head_at, logits = self.single
            return program.commands(extent)[: None if rows else head_at], logits
        columns = _columns(tokens)
        body, hidden = self._body(columns)
        if not rows:
            return body.commands(extent), hidden
        head, logits = self._head(columns, _columns(rows))
        return body.commands(extent) + head.commands(extent), logits

    def body(self, columns: int) -> Program:
        """The program of everything before the head, for 1, 2, 4, 8 or (0) many tokens."""
        return self._body(columns)[0]

    def lower_single(self) -> tuple[Program, int, Value]:
        """A new program of one token, where its head begins, and its logits."""
        lowering = Lowering(self.target, 1, 1)
        dispatches = lowering.lower(self.plan.steps, keep=LOGITS)
        return Program(self.device, dispatches), lowering.head_at, lowering.values[LOGITS]

    def _body(self, columns: int) -> tuple[Program, Value]:
        """Everything up to the last layer's output, which is the program's value."""
        if columns not in self._bodies:
            capacity = columns or -(-self.plan.tokens // ROW_TILE) * ROW_TILE
            lowering = Lowering(self.target, columns, capacity)
            hidden = self._hidden
            dispatches = lowering.lower(self.plan.steps[: self._split], keep=hidden)
            self._bodies[columns] = Program(self.device, dispatches), lowering.values[hidden]
        return self._bodies[columns]

    def _head(self, body: int, columns: int) -> tuple[Program, Value]:
        """The rest, for a body's output."""
        if (body, columns) not in self._heads:
            capacity = columns or -(-self.plan.rows // ROW_TILE) * ROW_TILE
            inputs = {self._hidden: self._body(body)[1]}
            lowering = Lowering(self.target, columns, capacity, inputs, rows=True)
            dispatches = lowering.lower(self.plan.steps[self._split :], keep=LOGITS)
            self._heads[body, columns] = Program(self.device, dispatches), lowering.values[LOGITS]
        return self._heads[body, columns]

    @property
    def _hidden(self) -> str:
        return self.plan.steps[self._split].inputs[0]

    def _reader(self, rows: int, logits: Value) -> Staging:
        size = _columns(rows) or self.plan.rows
        if size not in self._staging:
            self._staging[size] = Staging(self.device, size * logits.stride * 4)
        return self._staging[size]


def _columns(count: int) -> int:
    """The fewest columns of a kernel that hold `count`; 0 where matrix × matrix begins."""
    return next((columns for columns in COLUMNS if count <= columns), 0)
