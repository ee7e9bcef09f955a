"""A profile in rows: the time of each operation and each part of a layer, and how near it is to the device's limits."""

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

    On a GPU there is a third table, of the host's work in the same time.
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
    """Notes for reading the tables."""
    phases = [phase for phase in PHASES if profile.of(phase)]
    covered = " and ".join(f"{profile.covered(phase):.1%} of {phase} time" for phase in phases)
    rest = {
        "steps": "the rest is call overhead.",
        "dispatches": "in the rest, the GPU waited for the host.",
    }[profile.timing]
    dropped = sum(span.phase == "dropped" for span in profile.spans)
    ahead = (
        [f"{dropped} operations computed tokens after the end of the answer; they are not in the tables."]
        if dropped
        else []
    )
    return [
        f"The rows cover {covered}; {rest}",
        _cost(profile),
        *profile.answer.notes,
        *ahead,
        f"Limits of this device: it reads {profile.limits.read / 1e9:.1f} GB/s from memory and computes "
        f"{profile.limits.arithmetic / 1e9:,.0f} GFLOP/s with 8-bit integers. More than 100% of the limit means that "
        "the data came from caches.",
    ]


def _cost(profile: Profile) -> str:
    """What profiling added to the time of an answer, where that is more than the noise."""
    if profile.overhead <= profile.noise:
        return (
            f"Profiling took no measurable time: answers without it vary by ±{profile.noise:.1%}, more than with it."
            if profile.noise
            else "Profiling took no measurable time."
        )
    return f"Profiling took {profile.overhead:.1%} more time; answers without it vary by ±{profile.noise:.1%}."


def _title(profile: Profile, phase: Phase, what: str) -> str:
    tokens, milliseconds = profile.tokens(phase), 1000 * profile.seconds(phase)
    return f"{phase} by {what}: {tokens} tokens in {milliseconds:.1f} ms, {milliseconds / tokens:.3f} ms per token"


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
    """The least time that a line could take, for reading its bytes or computing, as a part of the time it took."""
    return max(line.nbytes / limits.read, line.flops / limits.arithmetic) / line.seconds


def _host_rows(profile: Profile, phase: Phase) -> Rows:
    seconds = profile.seconds(phase)
    return [
        ["on the host", *_HEAD[:3]],
        *([line.name, str(line.calls), f"{1000 * line.seconds:.2f}", f"{line.seconds / seconds:.1%}"]
          for line in profile.host if line.phase == phase),
    ]  # fmt: skip
