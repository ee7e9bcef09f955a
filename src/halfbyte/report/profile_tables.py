"""A profile in rows: what each operation and each part of a layer took, and how near that is to the memory's limit."""

from __future__ import annotations

from collections.abc import Sequence

from halfbyte.report.profile import PHASES, Line, Phase, Profile
from halfbyte.report.tables import NONE

Rows = list[list[str]]

_HEAD = ["calls", "ms", "share", "GB/s", "GFLOP/s", "of bandwidth"]


def tables(profile: Profile) -> list[tuple[str, Rows]]:
    """For each phase a table by part of a layer and one by operation, each adding up to the phase's time."""
    return [
        (_title(profile, phase, what), _rows(profile, phase, lines, what))
        for phase in PHASES
        if profile.of(phase)
        for what, lines in (("part", profile.parts), ("operation", profile.lines))
    ]


def about(profile: Profile) -> list[str]:
    """What is to be known when reading the tables."""
    covered = ", ".join(f"{profile.covered(phase):.1%} of {phase}" for phase in PHASES if profile.of(phase))
    return [
        f"Steps add up to {covered} runs; the rest is the way into the device and back.",
        f"Watching cost {profile.overhead:+.1%} of the time; answers without it varied by ±{profile.noise:.1%}.",
        f"Memory gives {profile.read_bandwidth / 1e9:.1f} GB/s when only read. More than 100% means that the data "
        "lay in the processor's caches; prefill is limited by arithmetic, not by this.",
    ]


def _title(profile: Profile, phase: Phase, what: str) -> str:
    turns = profile.of(phase)
    tokens = sum(turn.run.tokens for turn in turns)
    milliseconds = 1000 * profile.seconds(phase)
    each = f"{milliseconds / tokens:.3f} ms a token"
    return f"{phase} by {what}: {tokens} tokens in {milliseconds:.1f} ms, {each}"


def _rows(profile: Profile, phase: Phase, lines: Sequence[Line], what: str) -> Rows:
    seconds, mine = profile.seconds(phase), [line for line in lines if line.phase == phase]
    rest = seconds - sum(line.seconds for line in mine)
    host = ["host", str(len(profile.of(phase))), f"{1000 * rest:.2f}", f"{rest / seconds:.1%}", NONE, NONE, NONE]
    return [[what, *_HEAD], *(_row(profile, line, seconds) for line in mine), host]


def _row(profile: Profile, line: Line, seconds: float) -> list[str]:
    rate, work = line.nbytes / line.seconds, line.flops / line.seconds
    return [
        line.name, str(line.calls), f"{1000 * line.seconds:.2f}", f"{line.seconds / seconds:.1%}", f"{rate / 1e9:.2f}",
        f"{work / 1e9:.2f}" if work else NONE, f"{rate / profile.read_bandwidth:.0%}",
    ]  # fmt: skip
