"""What is computed otherwise on a GPU than the plan's steps say: found step by step before anything is emitted.

- `fused_rounding`: a product of one token norms and quantizes a short input itself, in every workgroup, so that no
  step before it has to.
- `deferred_norms`: a norm before packed matrices is folded into the step that makes its input. That step quantizes
  what it wrote times the norm's weights; the readers divide by the root of the mean square later.
- `paired_norms`: a norm with a residual and the norm that follows it are made in one dispatch.
- `norms_left_to_readers`: norms whose readers all quantize their input themselves are not made at all.
- `fused_attention`: for one token, norm and rotation of q and k, the cache write and attention are one kernel.
- `fused_merge`: over few keys the product that follows attention merges the splits that attention leaves it.
- `read_ahead`: where weights are many, products of one token read a word of each page that a later one will want.

Each is a function of a `Section` and of what was found before; `schedule` applies them in order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from halfbyte.gpu.lowering.columns import MOST_VECTORS
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops

Product = ops.Linear | ops.GatedLinear


@dataclass(frozen=True)
class Section:
    """Consecutive steps of a plan that become one program.

    Attributes:
        first: The number of the first step in the plan.
        columns: Rows that a batch may have, where there are few and kernels are made for them; 0 for many.
        capacity: Rows the activations have room for.
        rows: Whether these steps run over rows of logits, not tokens.
        keep: The tensor that other programs read, in float32.
    """

    context: LoweringContext
    steps: Sequence[ops.Op]
    columns: int
    capacity: int
    rows: bool = False
    first: int = 0
    keep: str = ""

    @cached_property
    def readers(self) -> dict[str, tuple[int, ...]]:
        """The steps that read each tensor."""
        found: dict[str, tuple[int, ...]] = {}
        for i, step in enumerate(self.steps):
            for name in dict.fromkeys(step.inputs):
                found[name] = (*found.get(name, ()), i)
        return found

    @property
    def vectors(self) -> bool:
        """Whether products are matrix × vector, and attention is split for every token."""
        return 0 < self.columns <= MOST_VECTORS

    @property
    def one_row(self) -> bool:
        """Whether the one token is also the one row of logits."""
        return self.columns == 1 and not self.rows


@dataclass(frozen=True)
class Schedule:
    """How a section's steps are computed, by their places in it.

    Attributes:
        int8: Products that can read int8 blocks.
        rounding: Those of them that norm and quantize float32 input themselves.
        prepared: The norm whose int8 input a step writes beside its own output.
        paired: The norm that is made together with one that has a residual.
        left: Norms that are left to their readers.
        rotating: The rotation that attention does itself.
        merging: Attention whose reader can merge splits.
        ahead: The weights whose pages a product asks for.
    """

    section: Section
    int8: frozenset[int]
    rounding: frozenset[int]
    prepared: Mapping[int, int]
    paired: Mapping[int, int]
    left: frozenset[int]
    rotating: Mapping[int, int]
    merging: frozenset[int]
    ahead: Mapping[int, tuple[str, ...]]

    def forms(self, name: str) -> tuple[bool, bool]:
        """Whether readers of a tensor want it in float32, and as int8 blocks."""
        return forms(self.section, self.int8, self.rounding, name)

    @cached_property
    def done_elsewhere(self) -> frozenset[int]:
        """Norms that another step makes as well."""
        return frozenset({*self.prepared.values(), *self.paired.values()})

    @cached_property
    def last_reads(self) -> dict[str, int]:
        """The last step that reads each tensor; attention also reads what its rotation reads."""
        readers = {rotation: attention for attention, rotation in self.rotating.items()}
        return {name: max(readers.get(i, i) for i in at) for name, at in self.section.readers.items()}


def schedule(section: Section) -> Schedule:
    """Everything that is found about a section."""
    int8 = int8_products(section)
    rounding = fused_rounding(section, int8)
    prepared = deferred_norms(section, int8, rounding)
    paired = paired_norms(section, prepared)
    return Schedule(
        section,
        int8,
        rounding,
        prepared,
        paired,
        norms_left_to_readers(section, rounding, prepared, paired),
        fused_attention(section),
        fused_merge(section, rounding),
        read_ahead(section),
    )


def forms(section: Section, int8: frozenset[int], rounding: frozenset[int], name: str) -> tuple[bool, bool]:
    """Whether readers of a tensor want it in float32, and as int8 blocks; in float32 where nothing reads it."""
    blocks = int8 - rounding
    wanted = any(i in blocks and _reads_as_input(section.steps[i], name) for i in section.readers.get(name, ()))
    return not only_input_of(section, blocks, name), wanted


def only_input_of(section: Section, products: Collection[int], name: str) -> bool:
    """Whether a tensor is read as the input of some of these products, and nowhere else."""
    readers = section.readers.get(name, ())
    return (
        bool(readers)
        and name != section.keep
        and all(
            i in products and _reads_as_input(section.steps[i], name) and section.steps[i].inputs.count(name) == 1
            for i in readers
        )
    )


def _reads_as_input(step: ops.Op, name: str) -> bool:
    return isinstance(step, Product) and step.x == name


def int8_products(section: Section) -> frozenset[int]:
    """Products that can take their input as int8 blocks."""
    context = section.context
    return frozenset(
        i
        for i, step in enumerate(section.steps)
        if isinstance(step, Product)
        and all(context.packed(matrix, piece) for matrix in [context.matrix(step.weights)] for piece in matrix.pieces)
    )


def fused_rounding(section: Section, int8: frozenset[int]) -> frozenset[int]:
    """Products of one token that norm and quantize their float32 input themselves; not of a row among others."""
    if not section.one_row:
        return frozenset()
    return frozenset(i for i in int8 if _rounds(section, section.steps[i]))


def _rounds(section: Section, step: ops.Op) -> bool:
    if not isinstance(step, Product):
        return False
    matrix = section.context.matrix(step.weights)
    return rules.rounds(section.context.config, outputs=matrix.rows, inputs=matrix.columns)


def deferred_norms(section: Section, int8: frozenset[int], rounding: frozenset[int]) -> dict[int, int]:
    """By the step that makes a norm's input: the norm that it can prepare, where packed matrices alone read that."""
    if not section.vectors or not section.context.config.deferred_norm:
        return {}
    found = {}
    for i, step in enumerate(section.steps):
        norm = _next_norm(section, i) if _can_prepare(section.context, step) else None
        if norm is not None:
            f32, blocks = forms(section, int8, rounding, section.steps[norm].outputs[0])
            width = section.context.plan.tensors[step.outputs[0]].shape[1]
            if blocks and not f32 and width % 32 == 0:
                found[i] = norm
    return found


def _can_prepare(context: LoweringContext, step: ops.Op) -> bool:
    """Whether one dispatch makes the whole output of a step, in blocks of 32 values."""
    if isinstance(step, ops.Embed):
        return len(context.matrix((step.table,)).pieces) == 1
    if not isinstance(step, ops.Linear):
        return False
    matrix = context.matrix(step.weights)
    return len(matrix.pieces) == 1 and matrix.rows % 32 == 0 and context.packed(matrix, matrix.pieces[0])


def _next_norm(section: Section, made_by: int) -> int | None:
    """The norm of a step's output that is the next step, but for rotation tables and the choice of rows."""
    made = {section.steps[made_by].outputs[0]}
    for i in range(made_by + 1, min(made_by + 4, len(section.steps))):
        step = section.steps[i]
        if isinstance(step, ops.RmsNorm):
            return i if step.x in made and not step.residual else None
        if isinstance(step, ops.Rows) and section.one_row and step.x in made:
            made.add(step.out)
        elif not isinstance(step, ops.RopeTable | ops.Rows):
            return None
    return None


def paired_norms(section: Section, prepared: Mapping[int, int]) -> dict[int, int]:
    """By a norm with a residual: the norm of its output that directly follows."""
    made = set(prepared.values())
    neighbours = enumerate(zip(section.steps, section.steps[1:], strict=False))
    return {i: i + 1 for i, (step, following) in neighbours if i not in made and _is_pair(step, following)}


def _is_pair(step: ops.Op, following: ops.Op) -> bool:
    """Whether these are a norm with a residual, and the norm of its output."""
    if not isinstance(step, ops.RmsNorm) or not isinstance(following, ops.RmsNorm):
        return False
    return bool(step.residual) and following.x == step.out and not following.residual


def norms_left_to_readers(
    section: Section, rounding: frozenset[int], prepared: Mapping[int, int], paired: Mapping[int, int]
) -> frozenset[int]:
    """Norms, or pairs of them by the first, that only products read which norm and quantize their input themselves."""
    taken = {*prepared.values(), *paired.values()}
    found = set()
    for i, step in enumerate(section.steps):
        if not isinstance(step, ops.RmsNorm) or i in taken:
            continue
        last = section.steps[paired.get(i, i)]
        readers = section.readers.get(last.outputs[0], ())
        alone = not step.residual or (i in paired and _same_epsilon(step, last) and len(readers) == 1)
        if alone and only_input_of(section, rounding, last.outputs[0]):
            found.add(i)
    return frozenset(found)


def _same_epsilon(one: ops.Op, other: ops.Op) -> bool:
    return isinstance(one, ops.RmsNorm) and isinstance(other, ops.RmsNorm) and one.eps == other.eps


def fused_attention(section: Section) -> dict[int, int]:
    """By attention of one token: the step before it, whose rotation and cache write it does itself."""
    if section.columns != 1 or not section.context.config.fused_attention:
        return {}
    return {
        i + 1: i
        for i, (step, following) in enumerate(zip(section.steps, section.steps[1:], strict=False))
        if isinstance(step, ops.RopeKvWrite)
        and not step.v_norm
        and isinstance(following, ops.Attention)
        and following.q == step.out
        and section.readers[step.out] == (i + 1,)
    }


def fused_merge(section: Section, rounding: frozenset[int]) -> frozenset[int]:
    """Attention whose result is read by one product alone, which quantizes its input itself."""
    if not section.context.config.fused_merge:
        return frozenset()
    return frozenset(
        i
        for i, step in enumerate(section.steps)
        if isinstance(step, ops.Attention)
        and len(section.readers.get(step.out, ())) == 1
        and only_input_of(section, rounding, step.out)
    )


def read_ahead(section: Section) -> dict[int, tuple[str, ...]]:
    """By a product of one token: the weights of the product some places later; the last ones ask for the first."""
    context = section.context
    nbytes = sum(tensor.nbytes for tensor in context.plan.of_kind("weight"))
    if not section.one_row or not context.config.read_ahead or nbytes < context.config.far_nbytes:
        return {}
    products = [(i, step.weights) for i, step in enumerate(section.steps) if isinstance(step, Product)]
    return {i: products[(at + rules.PRODUCTS_AHEAD) % len(products)][1] for at, (i, _) in enumerate(products)}
