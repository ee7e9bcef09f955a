"""`halfbyte profile` on a GPU: every dispatch in its place on the host's clock, with timestamps and without."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.gpu.checks import trace
from halfbyte.model import Model, load
from halfbyte.report import profile as profiles
from halfbyte.report.profile import Profile, profile
from halfbyte.report.profile_tables import about, tables
from halfbyte.report.timeline import Span
from halfbyte.report.trace import counts, events
from tests.device.gpu import software_index

PROMPT_TOKENS = 3
NEW_TOKENS = 4
LAYERS = 8
FUSED = {"qkv", "attention", "o", "gate_up", "down", "LM head", "sampling", "embedding"}


def watched(monkeypatch: pytest.MonkeyPatch, *, timestamps: bool, inside: bool = True) -> Profile:
    """A short answer of the pocket model on the software adapter, which is made to offer less."""
    monkeypatch.setattr(profiles, "ROUNDS", 1)
    monkeypatch.setattr(trace, "ROUNDS", 1)
    if not inside:
        monkeypatch.setattr(trace, "INSIDE_PASSES", "none")
    model: Model = load(device="gpu", gpu=software_index(), context=64)
    device = model.executor.device  # type: ignore[attr-defined]
    device.capabilities = replace(device.capabilities, timestamps=timestamps)
    found = profile(model, list(range(100, 100 + PROMPT_TOKENS)), max_tokens=NEW_TOKENS)
    model.close()
    return found


def lane(found: Profile, name: str) -> list[Span]:
    return sorted((span for span in found.spans if span.lane == name), key=lambda span: span.start_s)


def check_common(found: Profile) -> None:
    """What holds however the times were found."""
    decode = {line.name: line for line in found.parts if line.phase == "decode"}
    assert decode.keys() >= FUSED
    for part in ("qkv", "attention", "o", "gate_up", "down"):
        assert decode[part].calls == LAYERS * (NEW_TOKENS - 1)
    for name in ("tokens", "host", "gpu"):
        assert all(b.start_s >= a.end_s - 1e-6 for a, b in pairwise(lane(found, name)))
    assert sum(n for (where, *_), n in counts(events(found)).items() if where == "tokens") == NEW_TOKENS
    for title, rows in tables(found):
        phase = "prefill" if title.startswith("prefill") else "decode"
        assert sum(float(row[2]) for row in rows[1:]) == pytest.approx(1000 * found.seconds(phase), abs=0.2)


@pytest.mark.parametrize("inside", [True, False])
def test_timestamps_lie_between_their_submission_and_the_end_of_the_answer(
    monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    found = watched(monkeypatch, timestamps=True, inside=inside)
    check_common(found)
    first, last = lane(found, "gpu")[0], lane(found, "gpu")[-1]
    turns = found.answer.turns
    assert turns[0].start_s < first.start_s
    assert last.end_s < turns[-1].end_s + 0.01
    assert 0.5 < found.covered("decode") < 1.05
    says = "between dispatches" if inside else "around passes of one dispatch each"
    assert any(says in line and "of the host's" in line for line in about(found))


def test_bytes_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched(monkeypatch, timestamps=True)
    matrices = sum(tensor.nbytes for tensor in found.plan.of_kind("weight"))
    moved = sum(line.nbytes for line in found.parts if line.phase == "decode")
    assert matrices * (NEW_TOKENS - 1) * 0.9 < moved < 1.5 * matrices * (NEW_TOKENS - 1)


def test_without_timestamps_times_are_differences_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = watched(monkeypatch, timestamps=False)
    check_common(found)
    assert any("The GPU has no timestamps. Its times are differences" in line for line in about(found))


def test_a_difference_is_shared_by_the_calls_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"a": 0.02, "b": 0.005, "c": 0.0}
    commands: Any = [SimpleNamespace(dispatch=name) for name in ("a", "b", "b", "c")]
    now = [0.0]
    monkeypatch.setattr(trace.time, "perf_counter", lambda: now[0])

    def run(some: Any) -> None:
        now[0] += sum(cost[command.dispatch] for command in some)

    assert trace.differences(run, commands, lambda name: str(name)) == pytest.approx([0.02, 0.005, 0.005, 0.0])
