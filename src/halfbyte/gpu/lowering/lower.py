"""A plan becomes programs: which kernel runs each step, in which variant, over which buffers.

    steps ──passes──▶ Schedule ──ops, norms, products, attention──▶ Dispatches ──▶ Program

One plan is lowered several times over the same weights and caches: for one token and a few (matrix × vector), for up
to 64 (matrix × matrix, all rows in one tile), and for many (in tiles of 64). What a step leaves behind is a
`DeviceTensor`: float32, or int8 blocks where only matrices in packed formats read it, or both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from halfbyte.errors import DeviceError
from halfbyte.gpu.lowering.builder import Builder
from halfbyte.gpu.lowering.columns import COLUMNS, capacity, columns_for
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.norms import quantize_outputs
from halfbyte.gpu.lowering.ops import lower_op
from halfbyte.gpu.lowering.pages import page_nbytes, state_nbytes
from halfbyte.gpu.lowering.passes import Section, schedule
from halfbyte.gpu.lowering.program import Cache, Lowered, Output, Program
from halfbyte.gpu.lowering.sampling import SAMPLING_PROGRAMS, lower_sampling
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.lowering.tensor import DeviceTensor
from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.gpu.shaders.shader import DemandError, ShaderSet
from halfbyte.gpu.shaders.variants import KernelConfig, without_one
from halfbyte.plan import Plan
from halfbyte.plan.ops import Rows
from halfbyte.plan.plan import HIDDEN, LOGITS

SINGLE = "single"
"""The program of one token and its logits."""


def body_name(tokens: int) -> str:
    """The program of everything before the logits, for so many tokens."""
    return f"body.{_columns(tokens)}"


def head_name(tokens: int, rows: int) -> str:
    """The program of so many rows of logits, after the body for so many tokens."""
    return f"head.{_columns(tokens)}.{columns_for(rows) or 'many'}"


def hidden_name(tokens: int) -> str:
    """The program of the hidden states of so many tokens, after the body."""
    return f"hidden.{_columns(tokens)}"


def _columns(tokens: int) -> int | str:
    """What bodies are named after. One token alone has `SINGLE`, or the body of two if its hidden state is wanted."""
    return columns_for(max(2, tokens)) or "many"


class Lowerer:
    """Lowers a plan's programs as they are asked for.

    Args:
        plan: Fused.
        capabilities: What the device offers.
        config: The kernels to use.
        shaders: Shaders that another lowering made, to go on with.

    Attributes:
        context: What the programs refer to.
    """

    def __init__(
        self, plan: Plan, capabilities: Capabilities, config: KernelConfig, *, shaders: ShaderSet | None = None
    ) -> None:
        shared = ShaderSet() if shaders is None else shaders
        self.context = LoweringContext(plan, capabilities, config, StateLayout.of(plan), shared)
        self._head = next((i for i, step in enumerate(plan.steps) if isinstance(step, Rows)), len(plan.steps))
        self._programs: dict[str, Program] = {}

    def program(self, name: str) -> Program:
        """The program called `name`; see `Lowered`.

        Raises:
            UnsupportedModelError: There are no kernels for an op or a weight format.
        """
        if name not in self._programs:
            self._programs[name] = self._lower(name)
        return self._programs[name]

    def _lower(self, name: str) -> Program:
        plan = self.context.plan
        kind, *counts = name.split(".")
        if kind == "sample":
            return lower_sampling(self.context, name)
        columns = [0 if count == "many" else int(count) for count in counts]
        if kind == "body":
            section = Section(self.context, plan.steps[: self._head], columns[0], capacity(columns[0], plan.tokens))
            return lower_section(section, name, keep=self._hidden)
        if kind == "head":
            room, hidden = capacity(columns[1], plan.rows), self._output(f"body.{counts[0]}")
            section = Section(self.context, plan.steps[self._head :], columns[1], room, rows=True, first=self._head)
            return lower_section(section, name, {self._hidden: hidden}, keep=LOGITS)
        if kind == "hidden":
            room, hidden = capacity(columns[0], plan.tokens), self._output(f"body.{counts[0]}")
            section = Section(self.context, plan.hidden_steps, columns[0], room, first=self._head)
            return lower_section(section, name, {self._hidden: hidden}, keep=HIDDEN)
        return lower_section(Section(self.context, plan.steps, 1, 1), name, keep=LOGITS)

    @property
    def _hidden(self) -> str:
        return self.context.plan.steps[self._head].inputs[0]

    def _output(self, name: str) -> Output:
        output = self.program(name).output
        if output is None:
            raise TypeError(f"program {name} has no output")
        return output

    def names(self) -> Iterator[str]:
        """Every program that batches of the plan can take."""
        plan = self.context.plan
        yield SINGLE
        bodies = [*COLUMNS, plan.tokens]
        for tokens in sorted({min(count, plan.tokens) for count in bodies} - {1}) or [1]:
            yield body_name(tokens)
            if plan.hidden_steps:
                yield hidden_name(tokens)
            yield from dict.fromkeys(head_name(tokens, rows) for rows in range(1, min(tokens, plan.rows) + 1))
        yield from SAMPLING_PROGRAMS

    def lowered(self) -> Lowered:
        """Every program, and all that they refer to."""
        context, plan = self.context, self.context.plan
        programs = {name: self.program(name) for name in dict.fromkeys(self.names())}
        return Lowered(
            tuple(context.shaders.shaders),
            programs,
            context.state,
            dict(context.matrices),
            dict(context.vectors),
            {name: tuple(map(float, values.reshape(-1))) for name, values in plan.constants.items()},
            caches(plan),
            dict(context.buffers),
        )


def lower(plan: Plan, capabilities: Capabilities, config: KernelConfig) -> Lowered:
    """All programs of a fused plan, for what a device offers and the kernels that are to be used.

    Raises:
        UnsupportedModelError: There are no kernels for an op or a weight format.
    """
    return Lowerer(plan, capabilities, config).lowered()


def lower_section(section: Section, name: str, inputs: Mapping[str, Output] | None = None, *, keep: str) -> Program:
    """The program of a section, without the variants of kernels for which the device has too little of something.

    Args:
        name: The program's.
        inputs: What other programs left.
        keep: The tensor that is the program's output; it stays valid after its last reader.

    Raises:
        UnsupportedModelError: There are no kernels for an op or a weight format.
        DeviceError: A kernel takes more than the device has in every variant.
    """
    section = replace(section, keep=keep)
    while True:
        context, before = section.context, section.context.mark()
        try:
            return _lower_section(section, name, inputs or {})
        except DemandError as excess:
            context.rewind(before)
            section = replace(section, context=replace(context, config=_spared(context.config, excess)))


def _spared(config: KernelConfig, excess: DemandError) -> KernelConfig:
    spared = without_one(config, excess.kernel)
    if spared is None:
        raise DeviceError(f"the GPU {excess}.", "Use device='cpu'.") from excess
    return spared


def _lower_section(section: Section, name: str, inputs: Mapping[str, Output]) -> Program:
    keep = section.keep
    given = {each: DeviceTensor(value.width, f32=value.ref) for each, value in inputs.items()}
    builder = Builder(schedule(section), name, given)
    for i, step in enumerate(section.steps):
        builder.index = i
        if i not in builder.schedule.done_elsewhere:
            lower_op(step, builder)
            quantize_outputs(step, builder)
        builder.release_read(keep=keep)
    value = builder.values[keep]
    output = Output(value.f32, value.width, value.stride) if value.f32 else None
    return Program(tuple(builder.dispatches), output, builder.head)


def caches(plan: Plan) -> dict[str, Cache]:
    """How large the caches of a plan may become, and which block tables lead to them; a state is a block."""
    found = {}
    for group in plan.groups:
        for name in (name for pair in group.caches for name in pair):
            tensor = plan.tensors[name]
            found[name] = Cache(group.blocks, tensor.shape[1] * page_nbytes(tensor), tensor.shape[0])
    if plan.states:
        tensors = [plan.tensors[name] for name in plan.states.names]
        found |= {t.name: Cache(plan.states.table, state_nbytes(t), t.shape[0]) for t in tensors}
    return found
