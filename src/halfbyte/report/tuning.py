"""The results of tuning as tables: sizes of each kernel before and after, and the time saved per token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from halfbyte.formats import Format
from halfbyte.gpu.tuning.harness import DECODE, DEPTHS, PREFILL, smaller
from halfbyte.gpu.tuning.probe import DISTINCT_ROWS, LEAST_CONTEXT
from halfbyte.gpu.tuning.store import Measured, Verdict
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import make_plan
from halfbyte.report.bench import decode_bytes
from halfbyte.report.schema import Case

HEAD = ("kernel", "for", "tried", "µs default", "µs tuned", "ratio", "per step", "sizes")


def kernel_rows(measured: Iterable[Measured]) -> list[list[str]]:
    """A heading and a line per kernel; those that save the most come first."""
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
    """The sizes that changed, or that the default stays."""
    changed = {name: (m.usual.get(name), value) for name, value in m.sizes.items() if m.usual.get(name) != value}
    return " ".join(f"{name} {old}→{new}" for name, (old, new) in changed.items()) or "default"


def estimates(measured: Collection[Measured]) -> list[str]:
    """The sum of the gains of single kernels."""
    found = []
    for phase, unit in ((DECODE, "per token"), (PREFILL, "per batch of the prompt")):
        saved = sum(m.usual_s - m.best_s for m in measured if m.phase == phase)
        if saved > 0:
            found.append(f"{phase}: {saved * 1e6:,.0f} µs less {unit} (an estimate: kernels timed alone, added up).")
    return found


def verdict_line(v: Verdict) -> str:
    """A whole program before and after."""
    ratio = v.after_s / v.before_s
    outcome = "kept" if v.kept else "dropped: not faster by more than the noise"
    times = f"{v.before_s * 1e6:,.0f} → {v.after_s * 1e6:,.0f} µs"
    return f"{v.phase}, {v.layers} layers together: {times} ({ratio:.3f}); {outcome}."


def limit_line(
    v: Verdict, spec: ModelSpec, formats: Callable[[str], Format], *, kv_dtype: str, short: bool, read_bandwidth: float
) -> str:
    """How near a program of decoding is to what the memory gives: its weights and cache at the rate it can be read.

    Args:
        short: Whether the short version timed it, with few words.
        read_bandwidth: Bytes per second.
    """
    cut = smaller(spec, v.layers, DISTINCT_ROWS if short else None)
    context = max(min(spec.context, max(DEPTHS)), LEAST_CONTEXT)
    plan = make_plan(replace(cut, context=context), formats, tokens=1, context=context, kv_dtype=kv_dtype)
    depths = {min(depth, context) for depth in DEPTHS}
    nbytes = decode_bytes(plan, Case(sum(depths) // len(depths), 0))
    least, taken = nbytes / read_bandwidth, v.after_s if v.kept else v.before_s
    return (
        f"{v.phase}: reading {nbytes / 1e6:,.0f} MB takes {least * 1e6:,.0f} µs at the {read_bandwidth / 1e9:,.0f} "
        f"GB/s that doctor measured; this model runs at {least / taken:.0%} of that limit."
    )


def to_json(measured: Iterable[Measured], verdicts: Sequence[Verdict]) -> Mapping[str, object]:
    """All of it, for programs."""
    return {"rows": [asdict(m) for m in measured], "verdicts": [asdict(v) for v in verdicts]}
