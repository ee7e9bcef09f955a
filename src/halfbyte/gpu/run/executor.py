"""Runs plans on a GPU.

A plan is lowered to programs as they are needed: for 1, 2, 4, 8, 16, 32, 64 and many tokens, and for the logits of as
many rows. All share the weights, the caches and one small state buffer that holds the batch. Tokens are chosen on the
GPU, which goes on with them: batches are submitted before the host has seen the ids that they begin with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import numpy as np

from halfbyte.formats import WeightSource
from halfbyte.gpu.device.clock import PassClock
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.device.staging import Staging
from halfbyte.gpu.lowering.columns import COLUMNS, columns_for
from halfbyte.gpu.lowering.lower import SINGLE, Lowerer, body_name, head_name, hidden_name
from halfbyte.gpu.lowering.program import Extent, Program, Ref
from halfbyte.gpu.lowering.sampling import RESULT_NBYTES, RING, sampling_ref
from halfbyte.gpu.run import budget
from halfbyte.gpu.run.bind import Binder
from halfbyte.gpu.run.bound import BoundOutput, BoundProgram, Buffer, Command
from halfbyte.gpu.run.caches import Caches
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.recorder import Copy, PassHook, Recorder
from halfbyte.gpu.run.sampling import (
    DrawnTokens,
    PendingTokens,
    RowsRead,
    Slots,
    StatesRead,
    masks,
    program_for,
    supported,
)
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.variants import KernelConfig, choose
from halfbyte.plan import Batch, Draw, Pending, Plan
from halfbyte.plan.batch import Float32, Timing, UInt8
from halfbyte.plan.plan import LOGITS
from halfbyte.sampling import SamplingParams

AHEAD = 3
"""Submits in flight at most: enough to hide recording and the way back."""


class GpuExecutor:
    """The `Executor` protocol through WebGPU.

    Args:
        plan: What to run, as it is: faster where it is fused.
        weights: Where its weights come from; each is uploaded once.
        device: An open device.
        off: Names of kernel variants not to use: those that the self-test found wrong.
        tuning: Sizes of kernels that were measured on the device.
        activations: What packed weights are multiplied with: `int8`, rounded in blocks of 32, or `f32`.
        pipelines: The device's compiled kernels, where another executor has some already.
        free_memory: Bytes that it may take; unknown if None.
        progress: Called with the bytes uploaded so far.

    Attributes:
        config: The kernels in use.
        lowerer: Makes the programs that are bound here.

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
        self.plan = plan
        self.device = device
        self.off = frozenset(off)
        unwanted = self.off | ({"int8"} if activations != "int8" else set())
        self.config = choose(self.device.capabilities, off=unwanted, tuning=tuning)
        budget.check(self.plan, self.device, free_memory)
        self.lowerer = Lowerer(self.plan, device.capabilities, self.config)
        self.layout = self.lowerer.context.state
        self.recorder = Recorder(device)
        self.pipelines = pipelines or Pipelines(device)
        self._caches = Caches(device, self.plan)
        self._store = WeightStore(device, weights, progress=progress)
        self._shared = {Ref("state"): Buffer(device.buffer(self.layout.size * 4, "state"))}
        self._shared |= {Ref("cache", name): buffer for name, buffer in self._caches.buffers.items()}
        for name, values in self.plan.constants.items():
            self._shared[Ref("constant", name)] = self._store.constant(values, name)
        self._tables = {name: np.zeros((plan.sequences, n), np.int32) for name, n in self.layout.columns.items()}
        self._following: Batch | None = None
        self._steps = 0
        self._staging: dict[tuple[str, int], Staging] = {}
        self._results: deque[Staging] = deque()
        self._programs: dict[str, BoundProgram] = {}
        self._binder = self._make_binder()
        self._slots = Slots(device, self._binder.buffer, self.words)
        self.program(SINGLE)

    def _make_binder(self) -> Binder:
        return Binder(self.device, self.lowerer.context, self.pipelines, self._store, self._shared)

    def with_config(self, config: KernelConfig) -> GpuExecutor:
        """Another executor with other kernels over the same weights, caches and state; not to be run in turns."""
        other = copy(self)
        shaders = self.lowerer.context.shaders
        other.config, other._programs = config, {}
        other.lowerer = Lowerer(self.plan, self.device.capabilities, config, shaders=shaders)
        other._binder = other._make_binder()
        other._following, other._results, other._staging = None, deque(), {}
        other._slots = Slots(self.device, other._binder.buffer, self.words)
        return other

    def program(self, name: str) -> BoundProgram:
        """The program called `name`; see `Lowered`. Its kernels are being compiled from now on."""
        if name not in self._programs:
            self._programs[name] = self.bind(self.lowerer.program(name))
        return self._programs[name]

    def bind(self, program: Program) -> BoundProgram:
        """A program of this executor's `lowerer`, over its weights, caches and state."""
        return self._binder.bind(program)

    def buffer(self, ref: Ref) -> Buffer:
        """The buffer that a ref of this executor's programs names."""
        return self._binder.buffer(ref)

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

    def begin(self, batches: Iterable[tuple[int, int]]) -> list[BoundProgram]:
        """The programs for batches of so many tokens and rows of logits; other threads still compile their kernels."""
        names = [SINGLE]
        for tokens, rows in batches:
            names += [body_name(tokens), head_name(tokens, rows)]
        return [self.program(name) for name in names]

    @property
    def threads(self) -> int:
        """CPU threads that compute: none of its own, only the caller's waits."""
        return 1

    @property
    def timing(self) -> Timing | None:
        """Each dispatch is timed by `checks.trace.traced`."""
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
    def words(self) -> int:
        """Logits of a row."""
        return self.plan.tensors[LOGITS].shape[1]

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
            return np.zeros((0, self.words), np.float32)
        staging = self._logit_reader(rows, logits)
        submission = self.recorder.submit(
            commands, [(logits.buffer.handle, 0, staging.buffer, 0, rows * logits.stride * 4)]
        )
        staging.request(submission)
        values = staging.take(rows * logits.stride * 4).view(np.float32)
        return values.reshape(rows, logits.stride)[:, : logits.width]

    def read_blocks(self, name: str, blocks: Sequence[int]) -> UInt8:
        """Blocks of a cache, once all that was submitted is done.

        Raises:
            DeviceError: The device failed.
        """
        return self._caches.read(name, blocks)

    def write_blocks(self, name: str, blocks: Sequence[int], values: UInt8) -> None:
        """Write blocks of a cache, before whatever is submitted next.

        Raises:
            DeviceError: The device failed.
        """
        self._caches.write(name, blocks, values, self.recorder)

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

    @property
    def ahead(self) -> int:
        """Batches that may be under way at once."""
        return AHEAD

    @property
    def most_steps(self) -> int:
        """As many as the GPU keeps results of."""
        return RING

    def draws(self, sampling: SamplingParams) -> bool:
        """Whether the GPU chooses tokens with these settings; where it cannot, the host does, from their logits."""
        return supported(sampling)

    def submit(self, batch: Batch, draws: Sequence[Draw], *, steps: int = 1) -> Pending:
        """Send one batch to the GPU, and have a token chosen after each of its rows of logits.

        Where it is not known yet what may come, choosing is sent by `Pending.choose`: until then logits and state have
        to stay, so no other batch may be submitted.

        Raises:
            DeviceError: The device failed.
        """
        self.device.check_alive("the GPU refused work")
        self.load(batch)
        choose = self.program(program_for(draws)) if draws else None
        if choose is not None and any(map(masks, draws)):
            self.recorder.submit(self._commands(batch)[0])
            states = self._states(batch)
            return PendingTokens(lambda: self._drawn(choose.commands(self._extent(batch)), batch, draws), states)
        commands = list[Command]()
        for step in range(steps):
            forward, _ = self._commands(batch, step)
            commands += forward
            if choose is not None:
                commands += choose.commands(self._extent(batch, step))
        return PendingTokens(self._drawn(commands, batch, draws, steps), self._states(batch))

    def _states(self, batch: Batch) -> StatesRead | None:
        """Make the hidden states of what was submitted last, if they are wanted, and have them read."""
        if not batch.hidden:
            return None
        tokens = len(batch.token_ids)
        program = self.program(hidden_name(tokens))
        out, staging = program.output, self._reader("hidden", tokens, self.plan.tokens, program.output)
        copy = (out.buffer.handle, 0, staging.buffer, 0, tokens * out.stride * 4)
        staging.request(self.recorder.submit(program.commands(self._extent(batch)), [copy]))
        return StatesRead(staging, tokens, out.width, out.stride)

    def _drawn(self, commands: Sequence[Command], batch: Batch, draws: Sequence[Draw], steps: int = 1) -> DrawnTokens:
        """Send commands that choose tokens, once the GPU knows what they are chosen by; the tokens, on their way."""
        self._slots.tell(draws)
        errors, first = self._slots.allow(draws), self._steps
        self._expect(batch, draws, steps)
        results, read = self._next_results(), self._rows_read(draws)
        copies = [*self._result_copies(results), *self._row_copies(read)]
        submission = self.recorder.submit(commands, copies)
        results.request(submission)
        if read:
            read.staging.request(submission)
        rows = self.lowerer.context.logit_rows
        return DrawnTokens(results, first, steps, len(draws), RING, rows, read, errors)

    def load(self, batch: Batch) -> None:
        """Put a batch into the state buffer, the caches grown to hold its blocks; nothing if it is what is there."""
        self._caches.reserve(batch.block_tables, self.recorder)
        self._load_tables(batch)
        if self._following is None or not _same(batch, self._following):
            self._steps = 0
            self.device.write(self._shared[Ref("state")].handle, 0, self.layout.fill(batch))
        self._following = None

    def _load_tables(self, batch: Batch) -> None:
        """Write what has changed in the block tables; unused entries point at block 0, whose values go unused."""
        slots = np.unique(batch.sequences)
        for name, before in self._tables.items():
            width = batch.block_tables[name].shape[1]
            rows = np.maximum(batch.block_tables[name][slots], 0)
            changed = rows != before[slots, :width]
            for i in np.flatnonzero(changed.any(axis=1)).tolist():
                where = np.flatnonzero(changed[i])
                start, stop = int(where[0]), int(where[-1]) + 1
                at = self.layout.row_at(name, int(slots[i])) + start
                self.device.write(self._shared[Ref("state")].handle, at * 4, np.ascontiguousarray(rows[i, start:stop]))
            before[slots, :width] = rows

    def _expect(self, batch: Batch, draws: Sequence[Draw], steps: int) -> None:
        """Note what the state buffer holds when the tokens have been chosen, if all are chosen there."""
        self._steps += steps if draws else 0
        every = len(draws) == len(batch.token_ids) and all(supported(draw.sampler.params) for draw in draws)
        if every:
            ids = -1 - batch.sequences
            self._following = replace(batch, token_ids=ids, positions=batch.positions + np.int32(steps))

    def _next_results(self) -> Staging:
        """A buffer for the results of a submit; every other of the ring may still be on its way."""
        if len(self._results) <= AHEAD:
            nbytes = RING * self.lowerer.context.logit_rows * RESULT_NBYTES
            self._results.append(Staging(self.device, nbytes))
            return self._results[-1]
        self._results.rotate(-1)
        self._results[-1].drop()
        return self._results[-1]

    def _result_copies(self, results: Staging) -> list[Copy]:
        if sampling_ref("result").name not in self.lowerer.context.buffers:
            return []
        return [(self.buffer(sampling_ref("result")).handle, 0, results.buffer, 0, results.buffer.size)]

    def _rows_read(self, draws: Sequence[Draw]) -> RowsRead | None:
        """Where the logits go that the host chooses tokens from."""
        host = {row: draw for row, draw in enumerate(draws) if not supported(draw.sampler.params)}
        logits = self.program(SINGLE).output
        return RowsRead(self._logit_reader(max(host) + 1, logits), host, logits.width, logits.stride) if host else None

    def _row_copies(self, read: RowsRead | None) -> list[Copy]:
        if read is None:
            return []
        logits, nbytes = self.program(SINGLE).output.buffer.handle, read.stride * 4
        return [(logits, row * nbytes, read.staging.buffer, row * nbytes, nbytes) for row in read.draws]

    def _extent(self, batch: Batch, step: int = 0) -> Extent:
        keys = int(batch.positions.max()) + 1 + step
        return Extent(len(batch.token_ids), len(batch.logit_rows), keys, batch.num_decodes)

    def _commands(self, batch: Batch, step: int = 0) -> tuple[list[Command], BoundOutput]:
        """Everything up to the logits, so many steps after the batch."""
        extent = self._extent(batch, step)
        tokens, rows = extent.tokens, extent.rows
        if tokens == 1 and rows <= 1 and not batch.hidden:
            single = self.program(SINGLE)
            return single.commands(extent)[: None if rows else single.head], single.output
        body = self.program(body_name(tokens))
        if not rows:
            return body.commands(extent), body.output
        head = self.program(head_name(tokens, rows))
        return body.commands(extent) + head.commands(extent), head.output

    def _logit_reader(self, rows: int, logits: BoundOutput) -> Staging:
        return self._reader("logits", rows, self.plan.rows, logits)

    def _reader(self, what: str, rows: int, most: int, output: BoundOutput) -> Staging:
        """A free buffer for so many rows of an output, of which there are at most so many."""
        size = columns_for(rows) or most
        if (what, size) not in self._staging:
            self._staging[what, size] = Staging(self.device, size * output.stride * 4)
        self._staging[what, size].drop()
        return self._staging[what, size]


def _same(batch: Batch, other: Batch) -> bool:
    """Whether two batches fill the state buffer alike; their block tables aside."""
    pairs = zip(batch.state().items(), other.state().values(), strict=True)
    alike = all(np.array_equal(a, b) for (name, a), b in pairs if name not in batch.block_tables)
    return alike and batch.num_decodes == other.num_decodes
