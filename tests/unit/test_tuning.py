"""Tuning's choices: never slower by more than noise, never wrong, never lost; with clocks that the test holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halfbyte.formats import get_format
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.capabilities import BASELINE, Capabilities
from halfbyte.gpu.shaders.family import Tuning, row_name
from halfbyte.gpu.shaders.variants import KernelConfig, choose
from halfbyte.gpu.tuning.ab_test import ab_test, faster
from halfbyte.gpu.tuning.harness import DECODE, Entry, alike
from halfbyte.gpu.tuning.store import Choices, Measured, Verdict, keep_choices, load_choices
from halfbyte.gpu.tuning.tune import Tuner
from halfbyte.report.tuning import limit_line
from tests.models.tiny import tiny

LARGE = Capabilities(32, 49152, 1024, 32, 1 << 31, 1 << 31, True, True)
SMALL = BASELINE
NORM = {"width": 3072, "columns": 1}
ROW = row_name("norm", NORM)


def noisy(seed: int, sigma: float, drift: float = 0.0) -> Callable[[float], float]:
    """A clock: log-normal noise, one timing in twenty half as long again, and a machine that slows down."""
    random, told = np.random.default_rng(seed), [0]

    def time(true: float) -> float:
        told[0] += 1
        late = 1.5 if random.random() < 0.05 else 1.0
        return true * late * math.exp(sigma * random.standard_normal() + drift * told[0])

    return time


def winner(true: list[float], clock: Callable[[float], float], **more: Any) -> int | None:
    """Who wins of kernels that truly take so long, the usual one 1."""
    found = ab_test(
        range(len(true)), usual=lambda _: clock(1.0), other=lambda i: clock(true[i]), **{"right": lambda _: True} | more
    )
    return found.winner


@pytest.mark.parametrize(("sigma", "drift"), [(0.003, 0.0), (0.02, 0.002), (0.1, 0.0)])
def test_what_is_not_faster_is_hardly_ever_taken(sigma: float, drift: float) -> None:
    others = [1.0 + 0.02 * (i / 40) for i in range(40)]
    taken = [winner(others, noisy(seed, sigma, drift)) for seed in range(100)]
    assert sum(i is not None for i in taken) <= 3
    assert all(others[i] < 1.03 for i in taken if i is not None)


@pytest.mark.parametrize(("sigma", "gain"), [(0.003, 0.05), (0.02, 0.15)])
def test_what_is_clearly_faster_is_found_among_forty(sigma: float, gain: float) -> None:
    others = [1.01] * 40
    others[17] = 1 - gain
    assert sum(winner(others, noisy(seed, sigma)) == 17 for seed in range(50)) >= 45


def test_what_computes_something_else_never_wins() -> None:
    true, clock = [0.5, 0.6, 0.9], noisy(1, 0.003)
    found = ab_test(range(3), usual=lambda _: clock(1.0), other=lambda i: clock(true[i]), right=lambda i: i == 2)
    assert (found.winner, found.wrong) == (2, 2)
    assert winner(true, clock, right=lambda _: False) is None


def test_what_cannot_run_is_passed_over() -> None:
    assert winner([math.inf, 0.8, math.inf], noisy(2, 0.003)) == 1


def test_looking_ends_when_there_has_been_enough() -> None:
    looks = iter([False, False, True])
    found = ab_test(
        range(40), usual=lambda _: 1.0, other=lambda _: 1.0, right=lambda _: True, enough=lambda: next(looks)
    )
    assert (found.winner, found.tried) == (None, 2)


def test_a_gain_below_the_noise_is_none() -> None:
    before, after = [1.0, 1.2, 0.9, 1.1, 1.0] * 3, [0.98, 1.19, 0.93, 1.05, 1.01] * 3
    assert not faster(before, after)
    assert faster([1.0] * 15, [0.97] * 15)
    assert not faster([1.0] * 15, [0.97] * 15, least=0.05)


@pytest.mark.parametrize("capabilities", [LARGE, replace(LARGE, workgroup_storage=40_000), SMALL])
def test_every_family_offers_other_sizes_that_fit_and_the_usual_ones_fit_too(capabilities: Capabilities) -> None:
    config = choose(capabilities)
    large = config.fused_rounding
    shapes: dict[str, list[dict[str, Any]]] = {
        "gemv": [
            {
                "outputs": 4096,
                "blocks": 96,
                "int8": True,
                "gated": gated,
                "emit": emit,
                "columns": columns,
                "rounds": rounds,
                "format": "q",
            }
            for gated, emit, columns, rounds in (
                (False, False, 1, False),
                (True, True, 1, False),
                (False, True, 8, False),
                *(((gated, emit, 1, True) for gated in (False, True) for emit in (False, True)) if large else ()),
            )
        ],
        "gemm": [
            {
                "rows": rows,
                "outputs": outputs,
                "width": 64,
                "int8": int8,
                "gated": gated,
                "scales": scales,
                "format": "",
            }
            for rows in (16, 32, 64, 512)
            for outputs in (64, 5000, 100_000)
            for int8, gated in ((True, False), (True, True), (False, False))
            for scales in (2, 4)
        ],
        "attend": [
            {"heads": heads, "kv_heads": 8, "head_dim": 128, "columns": 1, "long": long, "left": left, "cache": "f16"}
            for heads, long, left in ((24, False, False), (24, True, False), (24, False, large), (32, False, large))
        ],
        "attend_tiled": [{"heads": 8, "kv_heads": 1, "head_dim": 256, "window": 0, "cache": "f16"}],
        "norm": [NORM],
    }
    for name, family in rules.FAMILIES.items():
        for shape in shapes.get(name, [{"width": 64, "columns": 1}]):
            usual = family.rule(config, **shape)
            assert family.fits(config, {**shape, **usual}), name
            found = family.candidates(config, shape)
            assert found, name
            assert all(family.fits(config, {**shape, **usual, **sizes}) and sizes != usual for sizes in found)
            assert len({tuple(sizes.items()) for sizes in found}) == len(found)


def test_measured_sizes_replace_the_rules_where_they_fit() -> None:
    config = choose(LARGE, tuning=Tuning({ROW: {"WG": 128}}))
    assert rules.norm(config, **NORM)["WG"] == 128
    assert rules.norm(config, width=64, columns=1)["WG"] == 256
    assert rules.norm(choose(SMALL, tuning=Tuning({ROW: {"WG": 1024}})), **NORM)["WG"] == 256
    assert config.tuning.asked[ROW] == ("norm", NORM)


@dataclass
class Bench:
    """A workbench whose kernels take what the test says."""

    kernel_s: Callable[[int], float]
    whole_s: Callable[[int], float]
    clock: Callable[[float], float]
    config = choose(LARGE)
    spec = SimpleNamespace(layers=(1, 2))
    device = SimpleNamespace(name="test")

    def program(self, phase: str, config: KernelConfig) -> Any:
        return config

    def rows(self, phase: str) -> dict[str, Any]:
        return {ROW: ("norm", NORM)} if phase == DECODE else {}

    def whole(self, phase: str, config: KernelConfig) -> Any:
        return self._entry(config, self.whole_s)

    def differing(self, phase: str, config: KernelConfig, program: Any, usual: Any) -> Any:
        return self._entry(self.config, self.kernel_s), self._entry(config, self.kernel_s)

    def _entry(self, config: KernelConfig, seconds: Callable[[int], float]) -> Any:
        true = seconds(rules.norm(config, **NORM)["WG"])
        return SimpleNamespace(
            config=config, program=None, dispatches=(SimpleNamespace(label="norm"),) * 2, commands=((),), true=true
        )

    def seconds(self, entry: Any) -> float:
        return self.clock(entry.true)

    def warm_up(self, seconds: float) -> None:
        pass

    def discard(self, program: Any, keep: Any = None) -> None:
        pass


def tuned(bench: Bench, *, right: bool = True) -> tuple[Choices, list[Measured | Verdict]]:
    """What is remembered after tuning the one kernel of a model with four layers."""
    choices = Choices()
    probe = SimpleNamespace(right=lambda config: right)
    found = Tuner(bench, probe, choices, model="m", layers=4, budget_s=1e9).run()  # type: ignore[arg-type]
    return choices, list(found)


def test_a_faster_kernel_is_remembered_with_what_it_saves() -> None:
    bench = Bench(lambda wg: 50e-6 if wg == 256 else 100e-6, lambda wg: 1e-3 if wg == 256 else 1.1e-3, noisy(3, 0.003))
    choices, found = tuned(bench)
    measured = choices.rows[ROW]
    assert (measured.sizes, measured.usual, measured.calls) == ({"WG": 256}, {"WG": 1024}, 4)
    assert measured.usual_s == pytest.approx(200e-6, rel=0.05)
    assert measured.best_s == pytest.approx(100e-6, rel=0.05)
    assert [type(result) for result in found] == [Measured, Verdict]
    assert choices.verdicts["m"][0].kept
    assert choices.tuning().sizes == {ROW: {"WG": 256}}


def test_choices_that_do_not_help_the_whole_step_are_dropped() -> None:
    bench = Bench(lambda wg: 50e-6 if wg == 256 else 100e-6, lambda wg: 1e-3, noisy(4, 0.003))
    choices, _ = tuned(bench)
    assert not choices.verdicts["m"][0].kept
    assert choices.tuning().sizes == {}


def test_a_kernel_that_disagrees_with_the_oracle_is_not_remembered() -> None:
    bench = Bench(lambda wg: wg * 1e-6, lambda wg: wg * 1e-6, noisy(5, 0.003))
    choices, _ = tuned(bench, right=False)
    assert choices.tuning().sizes == {}
    assert choices.rows[ROW].wrong == 3


def test_decoding_is_set_beside_what_memory_gives() -> None:
    """Every weight once, of which a block of 32 takes 18 bytes, and keys and values of 2 bytes each."""
    spec = tiny("llama-3.2-3b").spec
    matrices = [shape for name, shape in spec.shapes.items() if len(shape) == 2]
    vectors = [shape for shape in spec.shapes.values() if len(shape) == 1]
    weights = sum(r * -(-c // 32) * 18 for r, c in matrices) + sum(4 * n for (n,) in vectors)
    heads = spec.attentions[0]
    context = max(224, min(spec.context, 2048))
    depths = {min(512, context), min(2048, context)}
    cache = len(spec.layers) * 2 * heads.kv_heads * heads.head_dim * 2 * (sum(depths) // len(depths))
    formats = lambda name: get_format("q4g32" if len(spec.shapes[name]) == 2 else "f32")  # noqa: E731
    verdict = Verdict(DECODE, 2, 3e-3, 2e-3, True)
    line = limit_line(verdict, spec, formats, kv_dtype="f16", short=False, read_bandwidth=(weights + cache) / 1e-3)
    assert " takes 1,000 µs " in line
    assert "50% of that limit" in line


DEVICE: Any = SimpleNamespace(
    name="GPU", adapter=SimpleNamespace(backend="Vulkan", driver="1", software=False), capabilities=LARGE
)
MEASURED = Measured(ROW, "m", "norm", DECODE, {"WG": 1024}, {"WG": 256}, 2e-4, 1e-4, 4, 5, 0)


def test_choices_come_back_for_the_same_device_and_driver_only(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "tuning.json"
    choices = Choices({ROW: MEASURED}, {"m": [Verdict(DECODE, 2, 2e-3, 1e-3, True)]}, {"m"})
    keep_choices(DEVICE, choices, file)
    assert load_choices(DEVICE, file) == choices
    newer = SimpleNamespace(**{**vars(DEVICE), "adapter": SimpleNamespace(backend="Vulkan", driver="2")})
    assert load_choices(newer, file) == Choices()  # type: ignore[arg-type]
    keep_choices(newer, Choices(), file)  # type: ignore[arg-type]
    assert load_choices(DEVICE, file) == choices


def test_sizes_that_no_kernel_has_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    odd = {
        row: replace(MEASURED, row=row, sizes=sizes) for row, sizes in (("norm x", {"WG": 7}), ("none x", {"WG": 64}))
    }
    keep_choices(DEVICE, Choices({**odd, ROW: MEASURED}), file)
    assert load_choices(DEVICE, file).rows == {ROW: MEASURED}
    values = json.loads(file.read_text())
    next(iter(values["values"].values()))["rows"] = [{"row": 3}]
    file.write_text(json.dumps(values))
    assert load_choices(DEVICE, file) == Choices()


def test_both_ways_are_timed_over_the_same_batches() -> None:
    def entry(*groups: int) -> Entry:
        commands: Any = tuple((None, [(None, None, count, 1, 1)]) for count in groups)
        return Entry(choose(LARGE), SimpleNamespace(), (), commands)  # type: ignore[arg-type]

    growing, steady = entry(4, 16), entry(16, 16)
    assert alike(growing, steady) == (growing, steady)
    assert [len(each.commands) for each in alike(steady, entry(8, 8))] == [1, 1]
