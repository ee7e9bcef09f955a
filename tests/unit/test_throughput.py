"""`halfbyte bench throughput`: requests come when they should, times are the clock's, figures follow from them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.errors import ContextFullError, DeviceError, UsageError
from halfbyte.options import RunOptions
from halfbyte.plan import Batch
from halfbyte.plan.batch import Float32
from halfbyte.plan.plan import Plan
from halfbyte.report import schema
from halfbyte.report import throughput_tables as tables
from halfbyte.report.subject import Settings, stored
from halfbyte.report.tables import percentile
from halfbyte.report.throughput import Run, throughput
from halfbyte.report.throughput_schema import Request, Step, ThroughputRecord, read
from halfbyte.report.workload import Arrival, Workload, arrivals
from halfbyte.runtime import Engine
from tests.unit.cli_fakes import error_lines, halfbyte
from tests.unit.engine_fakes import VOCAB, FakeExecutor, LateExecutor, plan_of

QUICK = ("-p", "4-12", "-n", "3-5", "--requests", "5", "--sequences", "2", "--threads", "1", "--warm-up", "1")
SETTINGS = Settings(RunOptions("cpu", threads=1, sequences=2), repeat=1, warm_up=1)


# The requests


def test_the_same_seed_brings_the_same_requests_at_the_same_times() -> None:
    asked = Workload(50, (3, 9), (2, 5), rate=4.0, shared_prefix=2, seed=7)
    assert arrivals(asked, 100) == arrivals(asked, 100)
    other = arrivals(replace(asked, seed=8), 100)
    assert [a.due_s for a in other] != [a.due_s for a in arrivals(asked, 100)]
    assert [a.prompt_ids for a in other] != [a.prompt_ids for a in arrivals(asked, 100)]


def test_another_rate_brings_the_same_requests_at_other_times() -> None:
    slow, fast = (arrivals(Workload(50, (3, 9), (2, 5), rate=rate), 100) for rate in (1.0, 4.0))
    assert [(a.prompt_ids, a.new_tokens) for a in slow] == [(a.prompt_ids, a.new_tokens) for a in fast]
    np.testing.assert_allclose([a.due_s for a in slow], [4 * a.due_s for a in fast])


def test_requests_come_as_a_poisson_process() -> None:
    """Pauses are exponential: their deviation is their mean, and a part exp(-1) of them is longer than the mean."""
    due = np.array([a.due_s for a in arrivals(Workload(20_000, (1, 1), (1, 1), rate=5.0), 10)])
    pauses = np.diff(due)
    assert due[0] == 0
    assert pauses.mean() == pytest.approx(0.2, rel=0.03)
    assert pauses.std() == pytest.approx(0.2, rel=0.05)
    assert (pauses > 0.2).mean() == pytest.approx(np.exp(-1), rel=0.05)


def test_without_a_rate_all_come_at_once() -> None:
    assert {a.due_s for a in arrivals(Workload(9, (1, 4), (1, 4)), 10)} == {0.0}


def test_every_length_is_as_likely_and_the_ends_belong_to_the_range() -> None:
    found = arrivals(Workload(6000, (3, 8), (2, 2), shared_prefix=5), 1000)
    lengths, counts = np.unique([len(a.prompt_ids) - 5 for a in found], return_counts=True)
    assert lengths.tolist() == [3, 4, 5, 6, 7, 8]
    assert counts == pytest.approx([1000] * 6, rel=0.15)
    assert {a.new_tokens for a in found} == {2}


def test_all_prompts_begin_with_the_shared_prefix_and_go_on_differently() -> None:
    found = arrivals(Workload(40, (6, 6), (1, 1), shared_prefix=10), 50_000)
    assert len({a.prompt_ids[:10] for a in found}) == 1
    assert len({a.prompt_ids[10:] for a in found}) == 40
    assert {len(a.prompt_ids) for a in found} == {16}


def test_prompts_use_the_whole_vocabulary_and_nothing_else() -> None:
    ids = {token for a in arrivals(Workload(50, (9, 9), (1, 1)), VOCAB) for token in a.prompt_ids}
    assert ids == set(range(VOCAB))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt_tokens": (0, 4)}, "the tokens of a prompt cannot be 0-4"),
        ({"new_tokens": (5, 4)}, "the tokens of an answer cannot be 5-4"),
        ({"requests": 0}, "0 requests"),
        ({"shared_prefix": -1}, "a shared prefix of -1 tokens"),
        ({"seed": -1}, "the seed -1"),
        ({"rate": 0.0}, "a rate of 0.0 per second"),
        ({"rate": float("nan")}, "a rate of nan per second"),
        ({"rate": float("inf")}, "a rate of inf per second"),
    ],
)
def test_a_workload_that_cannot_be_is_a_sentence(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        replace(Workload(4, (1, 4), (1, 4)), **changed)
    assert words in raised.value.message


# The run: a clock that only moves when the executor computes, or when the run waits for a request


class Clocked(FakeExecutor):
    """A batch takes two seconds, of which it says that it worked for one and a half."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.time = 100.0

    def run(self, batch: Batch) -> np.ndarray:
        self.time += 2.0
        return super().run(batch)

    def counters(self) -> dict[str, float]:
        return {}

    def busy_s(self) -> float | None:
        return 1.5


class Waited(Clocked):
    """Counts the seconds that the host waited for it, as a GPU does; they began before the run."""

    def counters(self) -> dict[str, float]:
        return {"wait_s": 7 + 0.75 * (self.time - 100)}

    def busy_s(self) -> float | None:
        return None


class Silent(Clocked):
    """Does not tell what it did."""

    def busy_s(self) -> float | None:
        return None


class ClockedLate(LateExecutor):
    """Chooses tokens itself; every step takes two seconds."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.time = 0.0

    def run(self, batch: Batch) -> np.ndarray:
        self.time += 2.0
        return super().run(batch)

    def counters(self) -> dict[str, float]:
        return {"wait_s": 0.0}

    def busy_s(self) -> float | None:
        return None


def run_of(coming: list[Arrival], plan: Plan, kind: type[Any] = Clocked) -> Run:
    """A run that has ended."""
    executor = kind(plan)

    def sleep(seconds: float) -> None:
        assert seconds > 0
        executor.time += seconds

    clocks = {"now": lambda: executor.time, "thread_now": lambda: executor.time / 8}
    run = Run(Engine(executor), executor, coming, **clocks, sleep=sleep)
    run.to_the_end()
    return run


def record_of(run: Run, workload: Workload) -> ThroughputRecord:
    return ThroughputRecord(
        time="2026-01-01T00:00:00+00:00", workload=workload, requests=run.requests, steps=tuple(run.steps),
        load_s=1.5,
        check={"kl": 0.001, "same": 8, "tokens": 8, "layers": 2, "all_layers": 16}, machine={"processor": "Test CPU"},
        versions={"halfbyte": "0"}, model={"name": "test", "synthetic": True, "nbytes": 20e6},
        settings={"device": "cpu", "threads": 2, "sequences": 2},
    )  # fmt: skip


def test_tokens_are_timed_when_their_step_ends() -> None:
    """Two places for three requests: the third waits until the first has its three tokens."""
    coming = [Arrival(0.0, (1, 2), 3), Arrival(0.0, (3, 4), 4), Arrival(0.0, (5, 6), 2)]
    run = run_of(coming, plan_of(sequences=2))
    assert [request.token_s for request in run.requests] == [(2, 4, 6), (2, 4, 6, 8), (8, 10)]
    assert [step.waiting for step in run.steps] == [1, 1, 1, 0, 0]
    assert [step.ended_s for step in run.steps] == [2, 4, 6, 8, 10]
    assert {step.seconds for step in run.steps} == {2.0}


def test_the_first_token_counts_from_when_the_request_was_due() -> None:
    """The second comes while the first step runs, the third long after everything has ended."""
    coming = [Arrival(0.0, (1, 2), 1), Arrival(0.5, (3, 4), 1), Arrival(50.0, (5, 6), 2)]
    run = run_of(coming, plan_of())
    record = record_of(run, Workload(3, (2, 2), (1, 2), rate=1.0))
    assert tables.first_token_s(record) == [2.0, 3.5, 2.0]
    assert tables.total_s(record) == 54.0
    assert tables.tokens_per_s(record) == 4 / 54
    assert tables.requests_per_s(record) == 3 / 54
    assert tables.prompt_tokens_per_s(record) == 6 / 54


def test_a_request_that_falls_due_while_the_clock_is_read_is_not_waited_for() -> None:
    """Each look at the clock takes a while, and `time.sleep` refuses a negative time."""
    executor = Clocked(plan_of())

    def now() -> float:
        executor.time += 0.3
        return executor.time

    slept: list[float] = []
    coming = [Arrival(21.7 * i, (1, 2), 1) for i in range(20)]
    run = Run(Engine(executor), executor, coming, now=now, sleep=slept.append)
    run.to_the_end()
    assert min(slept) == 0.0
    assert all(request.finished for request in run.requests)


def test_tokens_that_come_out_of_one_step_share_their_time() -> None:
    run = run_of([Arrival(0.0, (1, 2), 12)], plan_of(), ClockedLate)
    (request,) = run.requests
    assert len(set(request.token_s)) < len(request.token_s) == 12, "several steps go together"
    pauses = tables.between_tokens_s(record_of(run, Workload(1, (2, 2), (12, 12))))
    assert len(pauses) == 11
    assert sum(pauses) == pytest.approx(request.token_s[-1] - request.token_s[0])
    assert tables._pauses((1.0, 3.0, 3.0, 3.5, 3.5, 3.5)) == pytest.approx([1.0, 1.0, *[0.5 / 3] * 3])
    assert tables._pauses((1.0,)) == tables._pauses(()) == []


def test_host_time_is_what_the_device_neither_works_nor_is_waited_for() -> None:
    coming = [Arrival(0.0, (1, 2), 3)]
    for kind, host_s in ((Clocked, 0.5), (Waited, 0.5), (Silent, None)):
        run = run_of(coming, plan_of(), kind)
        assert [step.host_s for step in run.steps] == [host_s] * 3, kind.__name__
        assert [step.thread_s for step in run.steps] == [0.25] * 3


def test_preemptions_are_counted() -> None:
    """The cache holds one conversation and a block: two that grow cannot both stay."""
    coming = [Arrival(0.0, (1, 2, 3, 4), 30), Arrival(0.0, (5, 6, 7, 8), 30)]
    tight, wide = (run_of(coming, plan_of(sequences=2, spare_blocks=spare)) for spare in (1, None))
    counts = [[request.preemptions for request in run.requests] for run in (tight, wide)]
    assert counts[0][0] == 0 < counts[0][1], "the one that came first goes on"
    assert counts[1] == [0, 0]
    record = record_of(tight, Workload(2, (4, 4), (30, 30)))
    assert tables.preemptions(record) == sum(counts[0])
    assert all(request.finished for run in (tight, wide) for request in run.requests)
    assert max(step.waiting for step in tight.steps) == 1, "one that gave way waits again"


def test_prompt_tokens_found_in_the_cache_are_counted() -> None:
    """One after the other: the second begins with two whole blocks of the first."""
    shared = (1, 2, 3, 4, 5, 6, 7, 8)
    plan = plan_of(window=40, chunk=40, block_size=4)
    run = run_of([Arrival(0.0, (*shared, 9, 10), 2), Arrival(90.0, (*shared, 11, 12), 2)], plan)
    assert [request.cached_tokens for request in run.requests] == [0, 8]
    assert tables.cached_share(record_of(run, Workload(2, (2, 2), (2, 2), shared_prefix=8))) == 8 / 20


def test_what_was_answered_is_kept_when_the_device_fails() -> None:
    executor = Clocked(plan_of(sequences=1))
    executor.fail_after, executor.failure = 3, DeviceError("it broke.", "Mend it.")
    coming = [Arrival(0.0, (1, 2), 2), Arrival(0.0, (3, 4), 2), Arrival(1e9, (3, 4), 2)]
    run = Run(Engine(executor), executor, coming, now=lambda: executor.time)
    with pytest.raises(DeviceError, match="it broke"):
        run.to_the_end()
    assert [request.token_s for request in run.requests] == [(2, 4), (6,)]
    assert [request.finished for request in run.requests] == [True, False]


# The figures


@pytest.mark.parametrize("percent", [0, 1, 50, 95, 99, 99.9, 100])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 100, 1001])
def test_percentiles_are_numpys(count: int, percent: float) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    assert percentile(values.tolist(), percent) == np.percentile(values, percent, method="inverted_cdf")


@pytest.fixture
def record() -> ThroughputRecord:
    """Three requests of four that had come when it was interrupted; one had no token yet."""
    requests = (
        Request(0.0, 100, 0, 0, 3, (0.5, 0.6, 0.8)),
        Request(0.25, 150, 50, 2, 4, (0.75, 1.0)),
        Request(0.9, 120, 0, 0, 4, ()),
    )
    steps = tuple(
        Step(0.25 * (i + 1), 0.2, host_s, 2 * host_s, i % 3) for i, host_s in enumerate((0.001, 0.002, 0.003, 0.05))
    )
    return ThroughputRecord(
        time="2026-01-01T00:00:00+00:00", workload=Workload(4, (50, 150), (3, 4), 2.0, 20, 9), requests=requests,
        steps=steps, load_s=1.5,
        check={"kl": 0.001, "same": 8, "tokens": 8, "layers": 2, "all_layers": 16}, machine={"processor": "Test CPU"},
        versions={"halfbyte": "0"}, model={"name": "test", "synthetic": True, "nbytes": 20e6},
        settings={"device": "cpu", "threads": 2, "sequences": 2},
    )  # fmt: skip


def test_the_table_shows_what_follows_from_the_samples(record: ThroughputRecord) -> None:
    lines = [" ".join(line.split()) for line in tables.terminal(record).splitlines()]
    assert lines[0] == "test (random weights) on cpu, 2 threads, Test CPU; at most 2 requests at once."
    assert lines[2] == (
        "4 requests, 2 per second on average: prompts of 50 to 150 tokens, after 20 that all share, answers of 3 to 4."
    )
    assert lines[4:13] == [
        "requests finished 1 of 4",
        "total s 1.000",
        "requests/s 1.00",
        "tokens/s 5.0",
        "prompt tokens/s 250.0",
        "prompt tokens in the cache 20.0%",
        "longest queue 2",
        "preemptions 2",
        "steps 4",
    ]
    assert lines[14:] == [
        "ms p50 p95 p99",
        "first token 500.0 500.0 500.0",
        "between tokens 200.000 250.000 250.000",
        "step 200.000 200.000 200.000",
        "host per step 2.000 50.000 50.000",
        "thread's CPU time per step 4.000 100.000 100.000",
    ]


def test_what_is_unknown_is_a_dash_and_never_zero(record: ThroughputRecord) -> None:
    steps = tuple(replace(step, host_s=None) for step in record.steps)
    bare = replace(record, steps=steps, requests=(record.requests[2],))
    lines = [" ".join(line.split()) for line in tables.terminal(bare).splitlines()]
    assert "prompt tokens in the cache –" in lines
    assert [line for line in lines if line.endswith("– – –")] == [
        "first token – – –",
        "between tokens – – –",
        "host per step – – –",
    ]


def test_a_record_survives_its_file(record: ThroughputRecord, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    at_once = replace(record, workload=Workload(4, (50, 150), (3, 4)))
    file.write_text(record.to_json() + "\n" + at_once.to_json() + "\n")
    assert read(file) == [record, at_once]


@pytest.mark.parametrize("name", [field.name for field in fields(ThroughputRecord)])
def test_every_field_of_a_record_is_needed(record: ThroughputRecord, tmp_path: Path, name: str) -> None:
    values = json.loads(record.to_json())
    del values[name]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=f"a field is missing or wrong: '{name}'"):
        read(file)


def test_measurements_of_another_kind_are_refused_in_a_sentence(record: ThroughputRecord, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(record.to_json())
    with pytest.raises(UsageError, match=r"line 1: it was not written by bench\. "):
        schema.read(file)
    file.write_text(json.dumps({"kind": schema.KIND, "schema": schema.SCHEMA}))
    with pytest.raises(UsageError, match=r"line 1: it was not written by bench throughput\. "):
        read(file)


# The pocket model


def test_the_pocket_model_is_checked_and_measured() -> None:
    found: list[ThroughputRecord] = []
    workload = Workload(4, (3, 8), (2, 4), rate=200.0, shared_prefix=3)
    throughput(stored(None), SETTINGS, workload, lambda _: None, found.append)
    (record,) = found
    assert record.workload == workload
    assert record.check["layers"] == record.check["all_layers"]
    assert record.settings["threads"] == 1
    assert record.settings["sequences"] == 2
    asked = arrivals(workload, stored(None).spec.vocab_size)
    wanted = [(len(a.prompt_ids), a.new_tokens) for a in asked]
    assert [(r.prompt_tokens, r.new_tokens) for r in record.requests] == wanted
    assert all(r.finished and r.token_s[0] > r.due_s for r in record.requests)
    assert all(step.host_s is not None and 0 < step.host_s <= step.seconds for step in record.steps)
    assert sum(step.seconds for step in record.steps) <= tables.total_s(record)
    assert record.requests[0].cached_tokens == 0, "the warm-up leaves nothing in the cache"


def test_lines_are_printed_and_appended(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    result = halfbyte("bench", "throughput", *QUICK, "--json", "--output", str(file))
    assert result.exit_code == 0
    assert result.stdout == file.read_text()
    (record,) = read(file)
    assert record.workload == Workload(5, (4, 12), (3, 5))
    assert (record.settings["sequences"], record.settings["context"], record.settings["warm_up"]) == (2, 17, 1)


class Interrupted(CpuExecutor):
    """Ctrl-C comes during the fortieth batch; the check takes eight of them."""

    batches = 0

    def run(self, batch: Batch) -> Float32:
        Interrupted.batches += 1
        if Interrupted.batches == 40:
            raise KeyboardInterrupt
        return super().run(batch)


def test_ctrl_c_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("halfbyte.cpu.factory.CpuExecutor", Interrupted)
    monkeypatch.setattr(Interrupted, "batches", 0)
    file = tmp_path / "rows.jsonl"
    asked = ("-p", "4", "-n", "4", "--requests", "500", "--sequences", "2", "--threads", "1", "--warm-up", "0")
    result = halfbyte("bench", "throughput", *asked, "--output", str(file))
    assert result.exit_code == 130
    (record,) = read(file)
    assert len(record.steps) == 31, "forty, less those of the check and the one that did not end"
    finished = sum(request.finished for request in record.requests)
    assert 0 < finished < 500
    assert "requests finished" in result.stdout
    assert f"{finished} of 500" in result.stdout


class Wrong(CpuExecutor):
    """A CPU executor with one wrong kernel."""

    def run(self, batch: Batch) -> Float32:
        return np.roll(super().run(batch), 1, axis=1)


def test_no_throughput_of_a_model_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.cpu.factory.CpuExecutor", Wrong)
    found: list[ThroughputRecord] = []
    with pytest.raises(DeviceError, match="pocket is not timed: on cpu it differs from the reference"):
        throughput(stored(None), SETTINGS, Workload(1, (3, 3), (2, 2)), lambda _: None, found.append)
    assert found == []


def test_requests_beyond_the_context_are_refused_before_anything_runs() -> None:
    with pytest.raises(ContextFullError, match="the longest request needs 1,000,007 positions; pocket has"):
        throughput(stored(None), SETTINGS, Workload(1, (3, 5), (2, 2), None, 1_000_000), lambda _: None, print)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--synthetic", "gpt-9"), 2, "no model 'gpt-9' in the catalog"),
        (("--synthetic", "phi-4", "-m", "x"), 2, "--synthetic cannot be combined with a stored model"),
        (("--layers", "2"), 2, "--layers only applies to --synthetic"),
        (("-p", "8,9"), 2, "'8,9' is not a range of numbers"),
        (("-p", "8-"), 2, "'8-' is not a range of numbers"),
        (("-n", "9-8"), 2, "the tokens of an answer cannot be 9-8"),
        (("--rate", "0"), 2, "a rate of 0.0 per second"),
        (("--sequences", "5000"), 2, "sequences must be between 1 and 1024"),
        (("--cache-tokens", "3"), 2, "cache_tokens (3) must not be less than context"),
        (("-p", "999999"), 6, "the longest request needs"),
        (("--output", "/no/such/folder/rows.jsonl"), 74, "/no/such/folder"),
    ],
)
def test_mistakes_are_sentences(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = halfbyte("bench", "throughput", *arguments)
    assert result.exit_code == code
    assert words in error_lines(result)[0]
