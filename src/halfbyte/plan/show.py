"""A plan for people (a table or a list with costs) and for programs (JSON that another executor could run)."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

from halfbyte.plan.ops import Op
from halfbyte.plan.plan import Plan
from halfbyte.units import quantity, size

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything that an executor needs, except the values of the weights.

    `steps` name their op, its attributes and the tensors they read and write; `tensors` give shape, type,
    kind and arena offset; `constants` give values; `cache_groups` tell how block tables are to be filled, and `states`
    where states lie.
    """
    return {
        "schema": SCHEMA,
        "tokens": plan.tokens,
        "rows": plan.rows,
        "sequences": plan.sequences,
        "context": plan.context,
        "block_size": plan.block_size,
        "arena_nbytes": plan.arena_nbytes,
        "tensors": {name: _without(dataclasses.asdict(t), "name") for name, t in plan.tensors.items()},
        "constants": {name: values.tolist() for name, values in plan.constants.items()},
        "cache_groups": [dataclasses.asdict(group) for group in plan.groups],
        "states": dataclasses.asdict(plan.states) if plan.states else None,
        "steps": [_step(plan, step) for step in plan.steps],
    }


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}


def _step(plan: Plan, step: Op) -> dict[str, Any]:
    return {
        "op": type(step).__name__,
        **dataclasses.asdict(step),
        "reads": list(step.inputs),
        "writes": list(step.outputs),
        "bytes": plan.bytes_moved(step),
        "flops": plan.flops(step),
    }


def table(plan: Plan) -> Table:
    """One line per step: what it computes, from which shapes, and what it costs at the plan's capacity."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading, side in (
        ("#", "right"),
        ("step", "left"),
        ("reads", "left"),
        ("writes", "left"),
        ("bytes", "right"),
        ("flops", "right"),
    ):
        shown.add_column(heading, justify=side, no_wrap=heading != "reads")  # type: ignore[arg-type]
    for i, step in enumerate(plan.steps):
        shown.add_row(
            str(i),
            type(step).__name__,
            _operands(plan, step.inputs),
            _operands(plan, step.outputs),
            size(plan.bytes_moved(step)),
            quantity(plan.flops(step), ""),
        )
    return shown


def listing(plan: Plan, width: int) -> str:
    """The same for narrow terminals: each step in a line with its costs, and under it what it reads and writes."""
    lines = [f"{'#':>3}  {'step':<22}{'bytes':>9}{'flops':>9}"]
    for i, step in enumerate(plan.steps):
        costs = f"{size(plan.bytes_moved(step)):>9}{quantity(plan.flops(step), ''):>9}"
        lines.append(f"{i:>3}  {type(step).__name__:<22}{costs}")
        for what, names in (("reads ", step.inputs), ("writes", step.outputs)):
            lines += textwrap.wrap(
                _operands(plan, names), width, initial_indent=f"     {what}  ", subsequent_indent=" " * 13,
                break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def summary(plan: Plan) -> str:
    """One line of totals."""
    weights = sum(t.nbytes for t in plan.of_kind("weight"))
    states = f", {plan.num_states} states {quantity(plan.states_nbytes, 'B')}" if plan.states else ""
    flops = sum(plan.flops(step) for step in plan.steps)
    moved = sum(plan.bytes_moved(step) for step in plan.steps)
    return (
        f"{len(plan.steps)} steps for {plan.tokens} tokens: {quantity(flops, '')} flops, {quantity(moved, 'B')} moved; "
        f"weights {quantity(weights, 'B')}, cache for {plan.context} tokens {quantity(plan.kv_nbytes, 'B')}{states}, "
        f"scratch {quantity(plan.arena_nbytes, 'B')}"
    )


def _operands(plan: Plan, names: tuple[str, ...]) -> str:
    return " ".join(
        f"{name}{list(plan.tensors[name].shape)}:{plan.tensors[name].dtype}".replace(" ", "") for name in names
    )
