"""A profile in rows: what each operation and each part of a layer took, and how near that is to the device's limits."""

from __future__ import annotations

from collections.abc import Sequence

from halfbyte.executors import Limits
from halfbyte.report.profile import Line, Profile
from halfbyte.report.tables import NONE
from halfbyte.report.timeline import PHASES, Phase

Rows = list[list[str]]

_HEAD = ["calls", "ms", "share", "GB/s", "GFLOP/s", "of limit"]


def tables(profile: Profile) -> list[tuple[str, Rows]]:
    """For each phase a table by part of a layer and one by operation, each adding up to the phase's time.

    Beside a GPU there is a third: what the host did in the same time.
    """
    found = []
    for phase in PHASES:
        if profile.of(phase):
            for what, lines in (("part", profile.parts), ("operation", profile.lines)):
                found.append((_title(profile, phase, what), _rows(profile, phase, lines, what)))
            if profile.timing == "dispatches":
                found.append((f"{phase} on the host", _host_rows(profile, phase)))
    return found


def about(profile: Profile) -> list[str]:
    """What is to be known when reading the tables."""
    phases = [phase for phase in PHASES if profile.of(phase)]
    covered = ", ".join(f"{profile.covered(phase):.1%} of {phase}" for phase in phases)
    rest = {
        "steps": "batches, with filling the state and waking the threads; the rest is the way into the core and back.",
        "dispatches": "time; in the rest the GPU waited for the host.",
    }[profile.timing]
    dropped = sum(span.phase == "dropped" for span in profile.spans)
    ahead = (
        [f"{dropped} operations computed tokens beyond the end of the answer; no table has them."] if dropped else []
    )
    return [
        f"Operations add up to {covered} {rest}",
        f"Watching cost {profile.overhead:+.1%} of the time; answers without it varied by ±{profile.noise:.1%}.",
        *profile.answer.notes,
        *ahead,
        f"Limits: memory gives {profile.limits.read / 1e9:.1f} GB/s when only read, sums of 8-bit products run at "
        f"{profile.limits.arithmetic / 1e9:,.0f} GFLOP/s. More than 100% means that the data lay in caches.",
    ]


def _title(profile: Profile, phase: Phase, what: str) -> str:
    tokens, milliseconds = profile.tokens(phase), 1000 * profile.seconds(phase)
    return f"{phase} by {what}: {tokens} tokens in {milliseconds:.1f} ms, {milliseconds / tokens:.3f} ms a token"


def _rows(profile: Profile, phase: Phase, lines: Sequence[Line], what: str) -> Rows:
    seconds, mine = profile.seconds(phase), [line for line in lines if line.phase == phase]
    rest = seconds - sum(line.seconds for line in mine)
    name = "GPU idle" if profile.timing == "dispatches" else "rest"
    last = [name, str(len(profile.of(phase))), f"{1000 * rest:.2f}", f"{rest / seconds:.1%}", NONE, NONE, NONE]
    return [[what, *_HEAD], *(_row(profile.limits, line, seconds) for line in mine), last]


def _row(limits: Limits, line: Line, seconds: float) -> list[str]:
    start = [line.name, str(line.calls), f"{1000 * line.seconds:.2f}", f"{line.seconds / seconds:.1%}"]
    if not line.nbytes or not line.seconds:
        return [*start, NONE, NONE, NONE]
    rate, work = line.nbytes / line.seconds, line.flops / line.seconds
    share = f"{of_limit(limits, line):.0%}"
    return [*start, f"{rate / 1e9:.2f}", f"{work / 1e9:.2f}" if work else NONE, share]


def of_limit(limits: Limits, line: Line) -> float:
    """The least time that a line could take, by reading its bytes or by its operations, as a part of what it takes."""
    return max(line.nbytes / limits.read, line.flops / limits.arithmetic) / line.seconds


def _host_rows(profile: Profile, phase: Phase) -> Rows:
    seconds = profile.seconds(phase)
    return [
        ["the host", *_HEAD[:3]],
        *([line.name, str(line.calls), f"{1000 * line.seconds:.2f}", f"{line.seconds / seconds:.1%}"]
          for line in profile.host if line.phase == phase),
    ]  # fmt: skip
