"""Measurements on disk: JSON lines, one per case, with everything needed to judge it later.

A line holds the raw samples; every figure is computed from them when it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from halfbyte.errors import UsageError
from halfbyte.user_files import read_text

SCHEMA = 1
"""The version of the lines; raised when a field changes its meaning or goes."""

KIND = "halfbyte bench"

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        prompt_tokens: Tokens read while the clock runs.
        new_tokens: Tokens generated, the first one included.
        depth: Tokens in the cache before the prompt.
        batch: Sequences answered at once.
    """

    prompt_tokens: int
    new_tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def context(self) -> int:
        """Positions that a sequence takes."""
        return self.depth + self.prompt_tokens + self.new_tokens

    @property
    def label(self) -> str:
        """The case in a few words."""
        extra = [f"depth {self.depth}"] * (self.depth > 0) + [f"batch {self.batch}"] * (self.batch > 1)
        return " ".join([f"{self.prompt_tokens}+{self.new_tokens}", *extra])


@dataclass(frozen=True)
class Sample:
    """One repetition.

    Attributes:
        prefill_s: Seconds to read the prompts and choose each sequence's first token; None where the depth's cache
            had to be computed in the same time.
        first_token_s: Seconds from submission to the first token of any sequence.
        step_s: Seconds of each decoding step after that; a step gives one token to every sequence.
        total_s: Seconds from submission to the last token.
        host_s: Seconds of decoding in which the device did not work; None if it does not measure that.
        counters: What the device counted while decoding, such as dispatches; empty where it counts nothing.
    """

    prefill_s: float | None
    first_token_s: float
    step_s: tuple[float, ...]
    total_s: float
    host_s: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A case, measured.

    Attributes:
        time: When, in ISO 8601, UTC.
        bytes_per_token: Bytes of weights and cache that decoding reads per token.
        read_bandwidth: Bytes per second read from the device's memory, measured around this case; empty if unknown.
        peak_bytes: Peak of host memory since the model began to load; None if unknown.
        check: How the model's tokens agreed with the reference before anything was timed.
        device_bytes: Peak of GPU memory for weights, caches and scratch; None without a GPU.
        gpu_s: GPU seconds per decoding step, from one more repetition that counts them; None if unknown.
    """

    time: str
    case: Case
    samples: tuple[Sample, ...]
    load_s: float
    bytes_per_token: float
    read_bandwidth: tuple[float, ...]
    peak_bytes: int | None
    check: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    device_bytes: int | None = None
    gpu_s: float | None = None

    def to_json(self) -> str:
        """The record as one line."""
        return json.dumps({"schema": SCHEMA, "kind": KIND, **asdict(self)}, allow_nan=False)


def read(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        UsageError: It cannot be read, is empty, or holds lines of another kind or schema.
    """
    return read_lines(path, KIND, SCHEMA, _parsed)


def read_lines(path: Path, kind: str, schema: int, parsed: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """The records of a file that has lines of one kind.

    Args:
        kind: The command that wrote them.
        schema: Their version.
        parsed: Makes a record of the values of a line; KeyError, TypeError and ValueError mean that they are wrong.

    Raises:
        UsageError: It cannot be read, is empty, or holds lines of another kind or schema.
    """
    command = kind.removeprefix("halfbyte ")
    hint = f"Give a file that {command} --output wrote."
    lines = read_text(path, hint).splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            values = _values(line, where, hint)
            _check_kind(values, where, kind, schema)
            try:
                records.append(parsed(values))
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"{where}: a field is missing or wrong: {error}.", "Measure again.") from error
    if not records:
        raise UsageError(f"{str(path)!r} has no measurements.", f"Write some with {command} --output.")
    return records


def _values(line: str, where: str, hint: str) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: it is not JSON: {error}.", hint) from error
    return values if isinstance(values, dict) else {}


def _check_kind(values: Mapping[str, Any], where: str, kind: str, schema: int) -> None:
    command = kind.removeprefix("halfbyte ")
    if values.get("kind") != kind:
        raise UsageError(f"{where}: it was not written by {command}.", f"Give a file that {command} --output wrote.")
    if values.get("schema") != schema:
        raise UsageError(
            f"{where}: its schema is {values.get('schema')!r}; this version reads {schema}.",
            "Measure again, or use the version that wrote it.",
        )


def _parsed(values: Mapping[str, Any]) -> Record:
    found = {f.name: values[f.name] for f in fields(Record) if f.name in values or f.default is MISSING}
    found["case"] = Case(**found["case"])
    found["samples"] = tuple(_sample(sample) for sample in found["samples"])
    found["read_bandwidth"] = tuple(map(float, found["read_bandwidth"]))
    if not found["samples"]:
        raise ValueError("there are no samples")
    return Record(**found)


def _sample(values: Mapping[str, Any]) -> Sample:
    return Sample(**{**values, "step_s": tuple(map(float, values["step_s"]))})


def cases(prompts: Iterable[int], new: Iterable[int], depths: Iterable[int], batches: Iterable[int]) -> list[Case]:
    """Every combination, batch by batch.

    Raises:
        UsageError: A number is out of range.
    """
    made = [Case(p, n, d, b) for b in batches for d in depths for p in prompts for n in new]
    for case in made:
        if min(case.prompt_tokens, case.new_tokens, case.batch) < 1 or case.depth < 0:
            raise UsageError(
                f"a prompt of {case.prompt_tokens} tokens, {case.new_tokens} new ones, depth {case.depth} and batch "
                f"{case.batch} cannot be measured.",
                "Depths are at least 0, the others at least 1.",
            )
    return made
