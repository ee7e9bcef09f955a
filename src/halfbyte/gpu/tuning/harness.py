"""A model's programs on a device, ready to be timed with any configuration of kernels: some layers, random weights.

Kernels are timed over the layers' own weights, after something else has filled the caches, as they are met in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from halfbyte.formats import Format
from halfbyte.gpu.checks.bandwidth import Reader
from halfbyte.gpu.checks.selftest import faulty_variants
from halfbyte.gpu.device.clock import Clock, WallClock
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.columns import COLUMNS
from halfbyte.gpu.lowering.lower import SINGLE, Lowerer, body_name
from halfbyte.gpu.lowering.program import Extent
from halfbyte.gpu.run.bind import OWNED
from halfbyte.gpu.run.bound import BoundDispatch, BoundProgram, Command
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Shape, Tuning
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.gpu.tuning.probe import LEAST_CONTEXT
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Batch, make_plan
from halfbyte.synthetic import SyntheticWeights, batch_of_one

DECODE, PREFILL, SAMPLING = "decode", "prefill", "sampling"
PHASES = {
    DECODE: SINGLE,
    PREFILL: "body.many",
    SAMPLING: "sample.greedy",
    **{f"{columns} tokens": body_name(columns) for columns in COLUMNS[1:]},
}
"""What is timed, and the program that does it; several tokens are a prompt's."""
DEPTHS = (512, 2048)
"""Keys that the one token of decoding sees, in turns."""
LAYERS = 8
COLD_NBYTES = 256 << 20
"""Read before each timing: more than caches hold."""
BUSY_S = 1e-3
"""And again for so long, lest the clocks fall between two timings."""


@dataclass(frozen=True)
class Entry:
    """One way to run a program, and of that what is timed: commands for each batch."""

    config: KernelConfig
    program: BoundProgram
    dispatches: tuple[BoundDispatch, ...]
    commands: tuple[tuple[Batch, list[Command]], ...]


class Harness:
    """Lowers and times programs of a model.

    Args:
        layers: Of the model's, the first so many.
        vocabulary: Of the model's, the first so many; the output matrix is as large.

    Attributes:
        spec: What is timed, with fewer layers than the model.
        config: The usual kernels.
        method: How times are taken: `timestamps`, or `differences` of wall-clock times.
    """

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        formats: Callable[[str], Format],
        *,
        tokens: int,
        kv_dtype: str = "f16",
        activations: str = "int8",
        layers: int = LAYERS,
        vocabulary: int | None = None,
    ) -> None:
        self.device = device
        context = max(LEAST_CONTEXT, min(spec.context, max(*DEPTHS, tokens)))
        self.spec = replace(smaller(spec, layers, vocabulary), context=max(spec.context, context))
        plan = make_plan(self.spec, formats, tokens=min(tokens, context), rows=8, context=context, kv_dtype=kv_dtype)
        weights = SyntheticWeights(self.spec, formats)
        self.executor = GpuExecutor(
            plan, weights, device=device, off=faulty_variants(device), tuning=Tuning(), activations=activations
        )
        self.config = self.executor.config
        self.method = "timestamps" if device.capabilities.timestamps else "differences"
        self._clock = (
            Clock(device) if device.capabilities.timestamps else WallClock(device, self.executor.recorder.submit)
        )
        nbytes = sum(tensor.nbytes for tensor in plan.of_kind("weight"))
        self._reader = Reader(device, min(COLD_NBYTES, 4 * nbytes))
        self._before = self._reader.commands

    def program(self, phase: str, config: KernelConfig) -> BoundProgram:
        """A phase's program with a configuration of kernels."""
        return self.executor.with_config(config).program(PHASES[phase])

    def rows(self, phase: str) -> dict[str, tuple[str, Shape]]:
        """The rows of the table that a phase looks up, with their families and shapes."""
        tuning = Tuning()
        lowerer = Lowerer(self.executor.plan, self.device.capabilities, replace(self.config, tuning=tuning))
        if phase == SAMPLING:
            lowerer.program(SINGLE)
            tuning.asked.clear()
        lowerer.program(PHASES[phase])
        return dict(tuning.asked)

    def whole(self, phase: str, config: KernelConfig) -> Entry:
        """A phase's whole program, to be timed."""
        program = self.program(phase, config)
        return self._entry(phase, config, program, range(len(program.dispatches)))

    def differing(
        self, phase: str, config: KernelConfig, program: BoundProgram, usual: BoundProgram
    ) -> tuple[Entry, Entry]:
        """Of the usual program and one with another configuration, the dispatches whose kernels differ."""
        if len(program) == len(usual):
            pairs = enumerate(zip(program.dispatches, usual.dispatches, strict=True))
            here = there = [i for i, (ours, theirs) in pairs if ours.kernels != theirs.kernels]
        else:
            made, known = ({id(k) for d in p.dispatches for k in d.kernels} for p in (program, usual))
            here = [i for i, d in enumerate(program.dispatches) if not known.issuperset(map(id, d.kernels))]
            there = [i for i, d in enumerate(usual.dispatches) if not made.issuperset(map(id, d.kernels))]
        return alike(self._entry(phase, self.config, usual, there), self._entry(phase, config, program, here))

    def _entry(self, phase: str, config: KernelConfig, program: BoundProgram, at: Sequence[int]) -> Entry:
        timed: list[tuple[Batch, list[Command]]] = []
        dispatches = tuple(program.dispatches[i] for i in at)
        chosen = {each for dispatch in dispatches for each in (dispatch, dispatch.long) if each}
        for batch in self._batches(phase):
            extent = Extent(len(batch.token_ids), 1, int(batch.positions.max()) + 1)
            timed.append((batch, [command for command in program.commands(extent) if command.dispatch in chosen]))
        return Entry(config, program, dispatches, tuple(timed))

    def _batches(self, phase: str) -> list[Batch]:
        plan = self.executor.plan
        if phase in (DECODE, SAMPLING):
            return [
                batch_of_one(plan, depth - 1, 1) for depth in sorted({min(depth, plan.context) for depth in DEPTHS})
            ]
        count = plan.tokens if phase == PREFILL else int(phase.split()[0])
        return [batch_of_one(plan, 0 if phase == PREFILL else min(DEPTHS[0], plan.context) - count, count)]

    def seconds(self, entry: Entry) -> float:
        """Time an entry once, cold; infinite where the device failed."""
        total = 0.0
        for batch, commands in entry.commands:
            self.executor.load(batch)
            total += self._clock.seconds(commands, before=self._before)
        return total

    def discard(self, program: BoundProgram, keep: BoundProgram | None = None) -> None:
        """Give a program's scratch memory back, but what the executor's own or another program uses too."""
        others = [self.executor.program(SINGLE), *([keep] if keep else [])]
        kept = {id(b) for other in others for d in other.dispatches for b in d.every_buffer}
        found = {id(b): b for d in program.dispatches for b in d.every_buffer if id(b) not in kept}
        for buffer in found.values():
            if buffer.handle.label in OWNED:
                self.device.free(buffer.handle)

    def warm_up(self, seconds: float) -> None:
        """Keep a real device busy until its clocks have risen."""
        if not self.device.adapter.software:
            rate = self._reader.rate(warm_up_s=seconds, measured_s=0.01)
            self._before = self._reader.commands * max(1, int(BUSY_S * rate / self._reader.nbytes))


def alike(one: Entry, other: Entry) -> tuple[Entry, Entry]:
    """Entries over the same batches: a single one if each of them starts the same workgroups in all of its batches."""
    if all(grids(commands) == grids(each.commands[0][1]) for each in (one, other) for _, commands in each.commands):
        return replace(one, commands=one.commands[:1]), replace(other, commands=other.commands[:1])
    return one, other


def grids(commands: Sequence[Command]) -> list[tuple[int, int, int]]:
    """The workgroups of each command."""
    return [command[2:] for command in commands]


def smaller(spec: ModelSpec, layers: int, vocabulary: int | None) -> ModelSpec:
    """A model with fewer layers and words, the rest as it was."""
    size = min(spec.vocab_size, vocabulary or spec.vocab_size)
    shapes = spec.shapes | dict.fromkeys((spec.embed, spec.lm_head), (size, spec.hidden_size))
    return replace(spec, layers=spec.layers[:layers], vocab_size=size, shapes=shapes)
