"""What tuning found, as tables: each kernel's sizes before and after, and what that comes to a token."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

from halfbyte.webgpu.tuning.choices import Measured, Verdict
from halfbyte.webgpu.tuning.workbench import DECODE, PREFILL

HEAD = ("kernel", "for", "tried", "µs usual", "µs tuned", "ratio", "a step", "sizes")


def kernel_rows(measured: Iterable[Measured]) -> list[list[str]]:
    """A line a kernel under a heading, those that save the most first."""
    by_saving = sorted(measured, key=lambda m: m.best_s - m.usual_s)
    return [list(HEAD), *(_row(m) for m in by_saving)]


def _row(m: Measured) -> list[str]:
    calls = max(1, m.calls)
    wrong = f" ({m.wrong} wrong)" if m.wrong else ""
    return [
        m.label, m.phase, f"{m.tried}{wrong}", f"{m.usual_s / calls * 1e6:,.1f}", f"{m.best_s / calls * 1e6:,.1f}",
        f"{m.best_s / m.usual_s:.3f}", f"×{m.calls}", _sizes(m),
    ]  # fmt: skip


def _sizes(m: Measured) -> str:
    """What changed, or that the usual sizes stay."""
    changed = {name: (m.usual.get(name), value) for name, value in m.sizes.items() if m.usual.get(name) != value}
    return " ".join(f"{name} {old}→{new}" for name, (old, new) in changed.items()) or "as usual"


def estimates(measured: Collection[Measured]) -> list[str]:
    """What the gains of single kernels add up to."""
    found = []
    for phase, unit in ((DECODE, "a token"), (PREFILL, "a batch of the prompt")):
        saved = sum(m.usual_s - m.best_s for m in measured if m.phase == phase)
        if saved > 0:
            found.append(f"{phase}: {saved * 1e6:,.0f} µs less {unit}, estimated: the sum of kernels timed alone.")
    return found


def verdict_line(v: Verdict) -> str:
    """A whole program before and after."""
    ratio = v.after_s / v.before_s
    outcome = "kept" if v.kept else "dropped: not faster by more than the noise"
    times = f"{v.before_s * 1e6:,.0f} → {v.after_s * 1e6:,.0f} µs"
    return f"{v.phase}, {v.layers} layers whole: {times} ({ratio:.3f}); {outcome}."


def to_json(measured: Iterable[Measured], verdicts: Sequence[Verdict]) -> Mapping[str, object]:
    """All of it, for programs."""
    return {"rows": [asdict(m) for m in measured], "verdicts": [asdict(v) for v in verdicts]}
