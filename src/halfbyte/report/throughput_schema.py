"""A measurement of throughput on disk: a JSON line with every request, token and step, from which figures follow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from halfbyte.report.schema import read_lines
from halfbyte.report.workload import Workload

SCHEMA = 1
"""The version of the lines; raised when a field changes its meaning or goes."""

KIND = "halfbyte bench throughput"


@dataclass(frozen=True)
class Request:
    """A request, and what had come of its answer when the measurement ended.

    Attributes:
        due_s: When it came, in seconds after the first request. Times to its tokens count from here.
        prompt_tokens: Tokens of its prompt, the shared prefix included.
        cached_tokens: Tokens of the prompt that were in the cache when it was first admitted.
        preemptions: How often it gave up its part of the cache for others, to be computed again.
        new_tokens: Tokens of its answer that were asked for.
        token_s: When each token was handed back, in seconds after the first request. Tokens that came out of one step
            have the same time.
    """

    due_s: float
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    new_tokens: int
    token_s: tuple[float, ...]

    @property
    def finished(self) -> bool:
        """Whether the whole answer came."""
        return len(self.token_s) == self.new_tokens


@dataclass(frozen=True)
class Step:
    """A step of the engine: it submits batches, and waits for the tokens of the oldest.

    Attributes:
        ended_s: Seconds after the first request.
        seconds: How long it took.
        host_s: `seconds` without the time that a CPU computed the batch, or that the host waited for a GPU; None if the
            device does not tell.
        thread_s: CPU time that the engine's thread took. Where the CPU computes the batch, the thread takes part in it.
        waiting: Requests that had come and did not run, at its end.
    """

    ended_s: float
    seconds: float
    host_s: float | None
    thread_s: float
    waiting: int


@dataclass(frozen=True)
class ThroughputRecord:
    """A workload, measured.

    Attributes:
        time: When, in ISO 8601, UTC.
        requests: Those that had come, in the order in which they came.
        check: How the model's tokens agreed with the reference before anything was timed.
    """

    time: str
    workload: Workload
    requests: tuple[Request, ...]
    steps: tuple[Step, ...]
    load_s: float
    check: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]

    def to_json(self) -> str:
        """The record as one line."""
        return json.dumps({"schema": SCHEMA, "kind": KIND, **asdict(self)}, allow_nan=False)


def read(path: Path) -> list[ThroughputRecord]:
    """The records of a file.

    Raises:
        UsageError: It cannot be read, is empty, or holds lines of another kind or schema.
    """
    return read_lines(path, KIND, SCHEMA, _parsed)


def _parsed(values: Mapping[str, Any]) -> ThroughputRecord:
    found = {field.name: values[field.name] for field in fields(ThroughputRecord)}
    workload = found["workload"]
    spans = {name: tuple(workload[name]) for name in ("prompt_tokens", "new_tokens")}
    found["workload"] = Workload(**{**workload, **spans})
    found["requests"] = tuple(Request(**{**each, "token_s": tuple(each["token_s"])}) for each in found["requests"])
    found["steps"] = tuple(Step(**each) for each in found["steps"])
    return ThroughputRecord(**found)
