"""Lowering without a GPU: programs are plain data, the same each time, and each pass finds what it should."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from halfbyte.errors import UnsupportedModelError
from halfbyte.gpu.lowering import code, passes
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.lower import SINGLE, Lowerer, lower, lower_section
from halfbyte.gpu.lowering.passes import Schedule, Section, schedule
from halfbyte.gpu.lowering.program import Axis, Dispatch, Extent, KeySplits, Lowered, Output, Program, Ref
from halfbyte.gpu.lowering.serial import digest, from_json, to_json
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.shaders.capabilities import BASELINE, Capabilities
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.shader import ShaderSet
from halfbyte.gpu.shaders.variants import KernelConfig, choose
from halfbyte.models.catalog import CATALOG, catalog_spec
from halfbyte.plan import Plan, make_plan, ops
from halfbyte.plan.plan import Tensor
from halfbyte.synthetic import SyntheticWeights

FULL = replace(
    BASELINE, subgroup=32, workgroup_storage=49_152, invocations=1024, storage_buffers=32, max_binding=2 << 30,
    max_buffer=4 << 30, timestamps=True, coherent=True,
)  # fmt: skip
EXTENTS = [Extent(*sizes) for sizes in ((1, 1, 1), (1, 1, 1600), (3, 2, 40), (8, 8, 512), (70, 1, 70), (1000, 9, 4000))]


def plan_of(model: str, *, layers: int | None = 2, stored: str = "q4g32", **capacities: Any) -> Plan:
    """A plan for some layers of a catalog model."""
    spec = catalog_spec(model, layers=layers)
    sizes = {"tokens": 1024, "rows": 1, "context": 4096, "kv_dtype": "f16", **capacities}
    return make_plan(spec, SyntheticWeights(spec, stored).format, **sizes)


@cache
def lowered(model: str = "llama-3.2-1b", capabilities: Capabilities = FULL) -> Lowered:
    """All programs of two layers of a model."""
    return lower(plan_of(model), capabilities, choose(capabilities))


def every_dispatch(found: Lowered) -> Iterator[Dispatch]:
    for program in found.programs.values():
        for dispatch in program.dispatches:
            yield from (dispatch, dispatch.long) if dispatch.long else (dispatch,)


@pytest.mark.parametrize("capabilities", [BASELINE, FULL], ids=["baseline", "full"])
@pytest.mark.parametrize("model", CATALOG)
def test_every_catalog_model_is_lowered_and_comes_back_from_json(model: str, capabilities: Capabilities) -> None:
    """Layers enough for each kind of attention: Gemma's sixth is its first without a window."""
    found = lower(plan_of(model, layers=6), capabilities, choose(capabilities))
    again = from_json(to_json(found))
    assert again == found
    assert digest(again) == digest(found)
    for one, other in zip(every_dispatch(found), every_dispatch(again), strict=True):
        assert list(one.bindings.items()) == list(other.bindings.items()), "in the order of the binding numbers"
        for extent in EXTENTS:
            assert [axis.at(extent) for axis in one.grid] == [axis.at(extent) for axis in other.grid]


@pytest.mark.parametrize("model", ["phi-4-mini", "gemma-3-1b"])
def test_what_programs_refer_to_is_there(model: str) -> None:
    found = lowered(model)
    names = {
        "weight": found.matrices, "vector": found.vectors, "constant": found.constants, "cache": found.caches,
        "state": {""}, "scratch": found.buffers, "counters": found.buffers, "logits": found.buffers,
            "sampling": found.buffers,
    }  # fmt: skip
    used = {ref for dispatch in every_dispatch(found) for ref in dispatch.bindings.values()}
    assert all(ref.name in names[ref.kind] for ref in used)
    assert {ref.name for ref in used if ref.kind == "weight"} == found.matrices.keys()
    assert {ref.name for ref in used if ref.kind == "cache"} == found.caches.keys()
    for dispatch in every_dispatch(found):
        assert list(dispatch.bindings) == list(found.shaders[dispatch.shader].accesses)


def test_programs_are_those_that_batches_can_take() -> None:
    few = lower(plan_of("llama-3.2-1b", tokens=6, rows=3), FULL, choose(FULL)).programs
    changes = ("", ".penalized", ".masked", ".penalized.masked")
    samplers = {f"sample.{kind}{more}" for kind in ("greedy", "random") for more in changes}
    heads = {"head.2.1", "head.2.2", "head.4.1", "head.4.2", "head.4.4", "head.8.1", "head.8.2", "head.8.4"}
    bodies = {f"{kind}.{count}" for kind in ("body", "hidden") for count in (2, 4, 8)}
    assert set(few) == {"single"} | bodies | heads | samplers
    many = lowered().programs
    assert {name for name in many if name.startswith(("body.many", "head.many"))} == {"body.many", "head.many.1"}
    counts = ["2", "4", "8", "16", "32", "64", "many"]
    for kind in ("body", "hidden"):
        assert [name for name in many if name.startswith(kind)] == [f"{kind}.{count}" for count in counts]
    served = lower(plan_of("llama-3.2-1b", rows=40, sequences=40), FULL, choose(FULL)).programs
    for at, body in enumerate(counts):
        rows = ["1", *counts[: min(at + 1, 6)]]
        assert [name for name in served if name.startswith(f"head.{body}.")] == [f"head.{body}.{n}" for n in rows]


def test_decodes_and_prompts_have_attention_of_their_own() -> None:
    """Up to 8 tokens, and where there is but one sequence, there is nothing to tell apart."""
    one = lowered().programs
    several = lower(plan_of("llama-3.2-1b", rows=20, sequences=20), FULL, choose(FULL)).programs
    assert attention(one, "body.8") == attention(several, "body.8") == ["tokens"]
    assert attention(one, "body.16") == attention(one, "body.many") == ["prompts"]
    for name in ("body.16", "body.32", "body.64", "body.many"):
        assert attention(several, name) == ["decodes", "prompts"]


def attention(programs: Mapping[str, Program], name: str) -> list[str]:
    """What each dispatch of attention of a program's first layer counts."""
    found = [d.grid for d in programs[name].dispatches if d.label.startswith("attend")]
    axes = [next(axis.count for axis in grid[1:] if isinstance(axis, Axis) and axis.count != "one") for grid in found]
    return axes[: len(axes) // 2]


def test_several_rows_are_one_tile_of_workgroups_enough() -> None:
    """An H200 has 132 cores, idle for at most 30% of the time; a tile's rows are those of the program."""
    for model in ("llama-3.2-1b", "phi-4-mini", "llama-3.1-8b"):
        programs = lowered(model).programs
        for rows in (16, 32, 64):
            grids = [d.grid for d in programs[f"body.{rows}"].dispatches if d.label.startswith("gemm")]
            extent = Extent(rows, 1, 500)
            assert all(y.at(extent) == 1 for _, y, _ in grids)
            for workgroups in [x.at(extent) for x, _, _ in grids]:
                assert workgroups / 132 >= 0.7 * math.ceil(workgroups / 132), (model, rows)


def test_a_batch_without_logits_ends_before_the_head() -> None:
    single = lowered().programs[SINGLE]
    labels = [dispatch.label for dispatch in single.dispatches]
    assert 0 < single.head < len(labels)
    assert all("128256" not in label for label in labels[: single.head])
    assert any("128256" in label for label in labels[single.head :])


def test_equal_kernels_share_a_shader() -> None:
    shallow, deep = (lower(plan_of("llama-3.2-1b", layers=n), FULL, choose(FULL)) for n in (2, 8))
    assert len(deep.programs[SINGLE].dispatches) > 3 * len(shallow.programs[SINGLE].dispatches)
    assert set(deep.shaders) == set(shallow.shaders)
    assert len({shader.code for shader in deep.shaders}) == len(deep.shaders)


def test_scratch_memory_does_not_grow_with_depth() -> None:
    shallow, deep = (lower(plan_of("gemma-3-1b", layers=n), BASELINE, choose(BASELINE)) for n in (6, 12))
    assert deep.buffers == shallow.buffers


def test_lowering_is_the_same_in_every_process() -> None:
    """Whatever order Python's sets have there."""
    script = (
        "from tests.unit.test_lowering import lowered; from halfbyte.gpu.lowering.serial import digest;"
        "print(digest(lowered('gemma-3-1b')))"
    )
    found = {_python(script, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
    assert found == {digest(lowered("gemma-3-1b")) + "\n"}


def test_lowering_runs_without_wgpu() -> None:
    script = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'wgpu': raise ImportError('wgpu is not installed')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from tests.unit.test_lowering import lowered\n"
        "print(len(lowered().programs))\n"
    )
    ran = _python(script)
    assert (ran.returncode, ran.stdout) == (0, f"{len(lowered().programs)}\n"), ran.stderr


def _python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": paths, **environment}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def _first_dispatch(change: Callable[[Dispatch], Dispatch]) -> Callable[[Lowered], Lowered]:
    def changed(found: Lowered) -> Lowered:
        single = found.programs[SINGLE]
        dispatches = (change(single.dispatches[0]), *single.dispatches[1:])
        return replace(found, programs={**found.programs, SINGLE: replace(single, dispatches=dispatches)})

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda found: replace(found, shaders=(replace(found.shaders[0], code="// other"), *found.shaders[1:])),
        _first_dispatch(lambda dispatch: replace(dispatch, grid=(Axis(2), Axis(), Axis()))),
        _first_dispatch(lambda dispatch: replace(dispatch, grid=(Axis(count="rows"), Axis(), Axis()))),
        _first_dispatch(lambda dispatch: replace(dispatch, bindings={**dispatch.bindings, "out": Ref("state")})),
        _first_dispatch(lambda dispatch: replace(dispatch, shader=dispatch.shader + 1)),
        _first_dispatch(lambda dispatch: replace(dispatch, long=dispatch, long_keys=100)),
        lambda found: replace(found, buffers={name: 2 * nbytes for name, nbytes in found.buffers.items()}),
        lambda found: replace(found, state=replace(found.state, size=found.state.size + 1)),
        lambda found: replace(found, constants={**found.constants, "inv_freq.rope": (1.0,)}),
        lambda found: replace(found, vectors={}),
        lambda found: replace(found, caches={}),
        lambda found: replace(found, matrices={}),
    ],
)  # fmt: skip
def test_the_digest_changes_with_anything_that_changes(change: Callable[[Lowered], Lowered]) -> None:
    assert digest(change(lowered())) != digest(lowered())


def test_other_kernels_and_other_shapes_have_other_digests() -> None:
    plan = plan_of("llama-3.2-1b")
    others = [
        lower(plan, FULL, choose(FULL, off=("fused-merge",))),
        lower(plan, BASELINE, choose(BASELINE)),
        lower(plan_of("llama-3.2-1b", context=2048), FULL, choose(FULL)),
        lower(plan_of("llama-3.2-1b", stored="q8g32"), FULL, choose(FULL)),
    ]
    assert len({digest(each) for each in (*others, lowered())}) == 5


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 1}', '{"schema": 0, "shaders": []}', "no JSON"])
def test_what_is_not_lowered_programs_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"schema|complete|Expecting"):
        from_json(text)


def test_what_was_found_about_kernels_is_forgotten_when_lowering_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Shaders, rules, lowering, formats and the version alike, but nothing else."""
    package = tmp_path / "halfbyte"
    for name in ("gpu/shaders/rules.py", "gpu/shaders/kernels/gemv.wgsl", "gpu/lowering/passes.py", "formats/q4g.wgsl"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("before")
    (package / "__init__.py").write_text('__version__ = "1"')
    monkeypatch.setattr(code, "_PACKAGE", package)
    found = [code.code_hash.__wrapped__()]
    for file in sorted(file for file in package.rglob("*.*") if file.is_file()):
        file.write_text("after")
        found.append(code.code_hash.__wrapped__())
    assert len(set(found)) == 6
    (package / "model.py").write_text("elsewhere")
    assert code.code_hash.__wrapped__() == found[-1]


@dataclass(frozen=True)
class Unknown(ops.Op):
    """An op that nobody lowers."""

    reads = ("x",)
    x: str
    out: str


def test_an_op_without_kernels_is_a_sentence_that_names_it() -> None:
    plan = plan_of("llama-3.2-1b")
    other = replace(plan, steps=(*plan.steps[:1], Unknown("embedding", "x"), *plan.steps[1:]))
    with pytest.raises(
        UnsupportedModelError, match=r"the GPU has no kernels for the operation Unknown\. Use device='cpu'"
    ):
        lower(other, FULL, choose(FULL))


def test_a_format_without_kernels_is_a_sentence_that_names_it() -> None:
    with pytest.raises(UnsupportedModelError, match=r"the GPU cannot read weights in mxfp4\."):
        lower(plan_of("llama-3.2-1b", stored="mxfp4"), FULL, choose(FULL))


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(7), [7, 7, 7, 7, 7, 7]),
        (Axis(count="tokens"), [1, 1, 3, 8, 70, 1000]),
        (Axis(3, "tokens", 64), [3, 3, 3, 3, 6, 48]),
        (Axis(count="rows", step=4), [1, 1, 1, 2, 1, 3]),
        (Axis(2, "decodes", 4), [0, 0, 0, 0, 0, 0]),
        (Axis(count="prompts", step=64), [1, 1, 1, 1, 2, 16]),
        (KeySplits(chunk=16, chunks=1, window=0, most=64), [1, 64, 3, 32, 5, 64]),
        (KeySplits(chunk=16, chunks=2, window=0, most=64), [1, 50, 2, 16, 3, 64]),
        (KeySplits(chunk=16, chunks=1, window=100, most=64), [1, 8, 3, 8, 5, 8]),
    ],
)
def test_grids_are_data(axis: Axis | KeySplits, expected: list[int]) -> None:
    assert [axis.at(extent) for extent in EXTENTS] == expected


def test_decodes_and_prompts_are_counted_apart() -> None:
    for decodes, expected in ((0, (0, 2)), (1, (1, 2)), (6, (6, 1)), (70, (70, 0))):
        extent = Extent(70, 3, 100, decodes)
        assert (Axis(count="decodes").at(extent), Axis(count="prompts", step=64).at(extent)) == expected


# Passes, one by one, over steps of our own.

WIDTHS = {"x": 64, "a": 64, "b": 64, "c": 64, "n": 64, "m": 64, "y": 64, "z": 64, "q": 64, "ids": 1, "odd": 72}


def section(
    *steps: ops.Op, columns: int = 1, rows: bool = False, stored: str = "q4g32", config: KernelConfig | None = None,
    capabilities: Capabilities = FULL,
) -> Section:  # fmt: skip
    """Steps over activations of 64 values and matrices `w0`… of 64 × 64."""
    tensors = {name: Tensor(name, (64, width), "f32", "activation", 0) for name, width in WIDTHS.items()}
    weights = {
        n for step in steps for n in (*getattr(step, "weights", ()), *([step.table] if hasattr(step, "table") else []))
    }
    tensors |= {name: Tensor(name, (64, 64), stored, "weight", 64 * 34) for name in weights}
    tensors |= {f"norm{i}": Tensor(f"norm{i}", (64,), "f32", "weight", 256) for i in range(4)}
    tensors |= {name: Tensor(name, (4, 2, 16, 32), "f16", "cache", 0) for name in ("k", "v")}
    plan = Plan(64, 64, 1, 64, 16, tensors, steps, (), {})
    config = config or choose(capabilities)
    context = LoweringContext(plan, capabilities, config, StateLayout.of(plan), ShaderSet())
    return Section(context, steps, columns, columns or 64, rows)


X = Output(Ref("scratch", "x"), 64, 64)
EMBED = ops.Embed("ids", "w0", "x")
NORM = ops.RmsNorm("x", "norm0", "n", 1e-6)
PRODUCT = ops.Linear("n", ("w1",), "y")
PLAIN = choose(FULL, off=("fused-rounding",))


def test_products_of_packed_formats_take_int8_blocks() -> None:
    assert passes.int8_products(section(EMBED, NORM, PRODUCT)) == {2}
    assert passes.int8_products(section(EMBED, NORM, PRODUCT, stored="f16")) == frozenset()
    assert passes.int8_products(section(EMBED, NORM, PRODUCT, config=choose(FULL, off=("int8",)))) == frozenset()


def test_only_products_of_one_token_round_their_input_themselves() -> None:
    assert schedule(section(NORM, PRODUCT)).rounding == {1}
    assert schedule(section(NORM, PRODUCT, columns=2)).rounding == frozenset()
    assert schedule(section(NORM, PRODUCT, rows=True)).rounding == frozenset()
    assert schedule(section(NORM, PRODUCT, config=PLAIN)).rounding == frozenset()


def test_a_norm_is_prepared_by_the_step_that_makes_its_input() -> None:
    assert schedule(section(EMBED, NORM, PRODUCT, config=PLAIN)).prepared == {0: 1}
    assert schedule(section(EMBED, NORM, PRODUCT, columns=4)).prepared == {0: 1}
    chain = (ops.Linear("a", ("w0",), "x"), NORM, PRODUCT)
    assert schedule(section(*chain, config=PLAIN)).prepared == {0: 1}


@pytest.mark.parametrize(
    ("why", "steps", "options"),
    [
        ("matrix × matrix", (EMBED, NORM, PRODUCT), {"columns": 0}),
        ("switched off", (EMBED, NORM, PRODUCT), {"config": choose(FULL, off=("deferred-norm", "fused-rounding"))}),
        ("readers round", (EMBED, NORM, PRODUCT), {}),
        ("a reader wants float32", (EMBED, NORM, PRODUCT, ops.Softcap("n", "z", 1.0)), {"config": PLAIN}),
        ("readers are not packed", (EMBED, NORM, PRODUCT), {"config": PLAIN, "stored": "f16"}),
        ("a residual comes on top", (EMBED, replace(NORM, residual="a"), PRODUCT), {"config": PLAIN}),
        ("another norm's input", (EMBED, replace(NORM, x="a"), PRODUCT), {"config": PLAIN}),
        ("a step between", (EMBED, ops.Softcap("a", "b", 1.0), NORM, PRODUCT), {"config": PLAIN}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_norm_is_not_prepared(why: str, steps: tuple[ops.Op, ...], options: dict[str, Any]) -> None:
    assert schedule(section(*steps, **options)).prepared == {}


def test_a_norm_is_prepared_across_the_choice_of_rows_of_one_token_only() -> None:
    steps = (EMBED, ops.Rows("x", "rows", "c"), replace(NORM, x="c"), PRODUCT)
    assert schedule(section(*steps, config=PLAIN)).prepared == {0: 2}
    assert schedule(section(*steps, columns=2)).prepared == {}


def test_a_norm_with_a_residual_and_the_next_are_one() -> None:
    pair = (replace(NORM, out="a", residual="z"), ops.RmsNorm("a", "norm1", "n", 1e-6), PRODUCT)
    assert schedule(section(*pair, config=PLAIN)).paired == {0: 1}
    assert schedule(section(*pair, config=PLAIN)).done_elsewhere == {1}
    alone = (replace(NORM, out="a"), *pair[1:])
    assert schedule(section(*alone, config=PLAIN)).paired == {}
    apart = (pair[0], ops.RmsNorm("x", "norm1", "n", 1e-6), PRODUCT)
    assert schedule(section(*apart, config=PLAIN)).paired == {}


def test_norms_are_left_to_readers_that_all_round() -> None:
    other = ops.Linear("n", ("w2",), "z")
    assert schedule(section(NORM, PRODUCT, other)).left == {0}
    assert schedule(section(NORM, PRODUCT, ops.Softcap("n", "z", 1.0))).left == frozenset()
    assert schedule(section(NORM)).left == frozenset(), "a result that nobody reads here"
    assert schedule(section(NORM, PRODUCT, config=PLAIN)).left == frozenset()


def test_a_residual_is_left_to_one_reader_only() -> None:
    pair = (replace(NORM, out="a", residual="z"), ops.RmsNorm("a", "norm1", "n", 1e-6), PRODUCT)
    assert schedule(section(*pair)).left == {0}
    assert schedule(section(*pair, ops.Linear("n", ("w2",), "b"))).left == frozenset()
    assert schedule(section(pair[0], replace(pair[1], eps=1e-5), PRODUCT)).left == frozenset()


ROPE = ops.RopeKvWrite(2, 1, 32, "a", "b", "positions", "sequences", "blocks", "k", "v", "q")
ATTENTION = ops.Attention(2, 1, 32, "q", "k", "v", "positions", "sequences", "blocks", "n", 1.0)


def test_attention_of_one_token_rotates_itself() -> None:
    found = schedule(section(ROPE, ATTENTION, PRODUCT))
    assert found.rotating == {1: 0}
    assert found.last_reads["a"] == 1, "its input stays until attention"
    assert schedule(section(ROPE, ATTENTION, PRODUCT, columns=2)).rotating == {}
    assert schedule(section(ROPE, ATTENTION, config=choose(FULL, off=("fused-attention",)))).rotating == {}
    assert schedule(section(ROPE, ATTENTION, ops.Softcap("q", "z", 1.0))).rotating == {}, "others read q too"
    assert schedule(section(ATTENTION, PRODUCT)).rotating == {}


def test_splits_are_left_to_the_one_product_that_rounds_its_input() -> None:
    assert schedule(section(ROPE, ATTENTION, PRODUCT)).merging == {1}
    assert schedule(section(ROPE, ATTENTION, PRODUCT, ops.Linear("n", ("w2",), "z"))).merging == frozenset()
    assert schedule(section(ROPE, ATTENTION, PRODUCT, config=PLAIN)).merging == frozenset()
    assert schedule(section(ROPE, ATTENTION, PRODUCT, stored="f16")).merging == frozenset()


def test_products_read_ahead_where_weights_are_many() -> None:
    steps = [ops.Linear("x", (f"w{i}",), "y") for i in range(5)]
    far = replace(choose(FULL), far_nbytes=0)
    expected = {i: (f"w{(i + 3) % 5}",) for i in range(5)}
    assert schedule(section(*steps, config=far)).ahead == expected
    assert schedule(section(*steps)).ahead == {}, "they are few"
    assert schedule(section(*steps, columns=2, config=far)).ahead == {}
    assert schedule(section(*steps, config=replace(far, read_ahead=False))).ahead == {}
    assert schedule(section(NORM, config=far)).ahead == {}


def test_a_schedule_says_which_forms_readers_want() -> None:
    found: Schedule = schedule(section(NORM, PRODUCT, ops.Softcap("n", "z", 1.0), config=PLAIN))
    assert found.forms("n") == (True, True)
    assert found.forms("y") == (True, False), "nobody reads it here"
    assert schedule(section(NORM, PRODUCT, config=PLAIN)).forms("n") == (False, True)
    assert schedule(section(NORM, PRODUCT)).forms("n") == (True, False)


def test_scratch_memory_is_used_again_after_its_last_reader() -> None:
    caps = [ops.Softcap(source, made, 1.0) for source, made in (("x", "a"), ("a", "b"), ("b", "c"), ("c", "y"))]
    made = section(ops.Embed("ids", "w0", "x"), *caps, stored="f16")
    program = lower_section(made, "p", keep="y")
    outs = [dispatch.bindings["out"] for dispatch in program.dispatches]
    assert len(set(outs)) == 2
    assert all(dispatch.bindings["x"] != dispatch.bindings["out"] for dispatch in program.dispatches[1:])
    assert program.output is not None
    assert program.output.ref == outs[-1]
    assert made.context.buffers == {ref.name: 64 * 4 for ref in set(outs)}


def test_matrices_are_cut_where_a_binding_ends() -> None:
    small = replace(FULL, max_binding=20_000)
    plan = plan_of("llama-3.2-1b", stored="f16", layers=1)
    context = Lowerer(plan, small, choose(small)).context
    matrix = context.matrix(("model.embed_tokens.weight",))
    assert sum(piece.rows for piece in matrix.pieces) == matrix.rows == 128_256
    assert [piece.first % 64 for piece in matrix.pieces] == [0] * len(matrix.pieces)
    whole = Lowerer(plan, FULL, choose(FULL)).context.matrix(("model.embed_tokens.weight",))
    assert [piece.rows for piece in whole.pieces] == [128_256]


def test_tuned_sizes_reach_the_shaders() -> None:
    plan, asked = plan_of("llama-3.2-1b"), Tuning()
    usual = lower(plan, FULL, choose(FULL, tuning=asked))
    row = next(row for row in asked.asked if row.startswith("sample "))
    other = lower(plan, FULL, choose(FULL, tuning=Tuning({row: {"GROUPS": 64}})))
    grids = [each.programs["sample.greedy"].dispatches[0].grid[0].at(EXTENTS[0]) for each in (usual, other)]
    assert grids == [128, 64]


def test_constants_are_those_of_the_plan() -> None:
    plan = plan_of("llama-3.2-1b")
    found = lowered().constants
    for name, values in plan.constants.items():
        assert np.array_equal(np.array(found[name], np.float32), values.reshape(-1))
