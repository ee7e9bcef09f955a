"""Plans: memory that never overlaps, costs that add up, JSON that is enough to run from."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.plan import Plan, Tensor, make_plan, ops
from halfbyte.plan.plan import CacheGroup
from halfbyte.plan.show import summary, table, to_json
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.units import quantity
from tests.models.tiny import FAMILIES, feed, tiny


def lifetimes(plan: Plan) -> dict[str, tuple[int, int]]:
    """First write and last read of every activation."""
    spans: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(plan.steps):
        for name in (*step.outputs, *step.inputs):
            if plan.tensors[name].kind == "activation":
                spans[name] = (spans.get(name, (i, i))[0], i)
    return spans


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_that_live_together_never_overlap(family: str, fused: bool) -> None:
    plan = tiny(family).plan(fused=fused)
    for (a, (a_first, a_last)), (b, (b_first, b_last)) in combinations(lifetimes(plan).items(), 2):
        in_place = any(
            a in plan.steps[i].in_place and b in plan.steps[i].outputs for i in {a_last} if a_last == b_first
        )
        if a_first <= b_last and b_first <= a_last and not in_place:
            x, y = plan.tensors[a], plan.tensors[b]
            assert x.offset is not None
            assert y.offset is not None
            assert x.offset + x.nbytes <= y.offset or y.offset + y.nbytes <= x.offset, (a, b)


def test_every_activation_lies_in_the_arena_and_sharing_saves_memory() -> None:
    plan = tiny("llama-3.1-8b").plan()
    activations = plan.of_kind("activation")
    assert all(t.offset is not None and t.offset + t.nbytes <= plan.arena_nbytes for t in activations)
    assert plan.arena_nbytes < sum(t.nbytes for t in activations) / 2


def test_a_fused_llama_layer_has_eight_steps() -> None:
    plan = tiny("llama-3.1-8b").plan()
    names = [type(step).__name__ for step in plan.steps]
    layer = ["RmsNorm", "Linear", "RopeKvWrite", "Attention", "Linear", "RmsNorm", "GatedLinear", "Linear"]
    assert names == ["RopeTable", "Embed", *layer, *layer, "Rows", "RmsNorm", "Linear"]


def test_a_window_keeps_a_ring_of_the_window_and_one_batch() -> None:
    plan = tiny("gemma-3-1b").plan(tokens=8, block_size=4, context=128)
    columns = {group.window: group.columns for group in plan.groups}
    assert columns == {19: (18 + 8 + 3) // 4 + 1, None: 32}


def test_costs_are_those_of_the_shapes() -> None:
    plan = tiny("phi-4").plan(tokens=3, rows=1)
    linear = next(step for step in plan.steps if isinstance(step, ops.Linear))
    hidden, qkv = 80, 3 * 80
    assert plan.flops(linear) == 2 * 3 * hidden * qkv
    assert plan.bytes_moved(linear) == 4 * (3 * hidden + hidden * qkv + 3 * qkv)
    embed = next(step for step in plan.steps if isinstance(step, ops.Embed))
    assert plan.bytes_moved(embed) == 4 * (3 + 3 * hidden + 3 * hidden)


def from_json(text: str) -> Plan:
    """A plan from its JSON alone."""
    data = json.loads(text)

    def tupled(value: Any) -> Any:
        return tuple(map(tupled, value)) if isinstance(value, list) else value

    def step(entry: dict[str, Any]) -> ops.Op:
        kind = getattr(ops, entry["op"])
        return kind(**{f.name: tupled(entry[f.name]) for f in dataclasses.fields(kind)})

    tensors = {n: Tensor(name=n, **{k: tupled(v) for k, v in t.items()}) for n, t in data["tensors"].items()}
    groups = tuple(CacheGroup(**{k: tupled(v) for k, v in group.items()}) for group in data["cache_groups"])
    constants = {name: np.array(values, np.float32) for name, values in data["constants"].items()}
    sizes = {key: data[key] for key in ("tokens", "rows", "sequences", "context", "block_size", "arena_nbytes")}
    return Plan(tensors=tensors, steps=tuple(map(step, data["steps"])), groups=groups, constants=constants, **sizes)


@pytest.mark.parametrize("family", ["gemma-3-1b", "phi-4-mini"])
def test_the_json_is_enough_to_run_the_model(family: str) -> None:
    model = tiny(family)
    plan = model.plan()
    again = from_json(json.dumps(to_json(plan)))
    assert again.tensors == plan.tensors
    assert again.steps == plan.steps
    ids = [5, 9, 11, 40]
    assert np.array_equal(feed(ReferenceExecutor(again, model), ids), feed(ReferenceExecutor(plan, model), ids))


def test_the_table_has_a_row_a_step() -> None:
    plan = tiny("mistral-7b-v0.1").plan()
    assert table(plan).row_count == len(plan.steps)
    assert summary(plan).startswith(f"{len(plan.steps)} steps for 64 tokens:")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (999_700, "1 MB"), (1_230_000, "1.23 MB"), (5e15, "5e+03 TB")],
)
def test_quantities_are_short(value: float, shown: str) -> None:
    assert quantity(value, "B") == shown


@pytest.mark.parametrize("bad", [{"context": 0}, {"context": 129}, {"kv_dtype": "f8"}, {"kv_dtype": "q5"}])
def test_capacities_out_of_range_are_named(bad: dict[str, Any]) -> None:
    model = tiny("phi-4")
    with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
        make_plan(model.spec, model.format, **bad)
