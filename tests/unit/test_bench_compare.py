"""Comparing measurements: a build with itself shows no difference 19 times in 20, and 3% more work is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.report.against import Build, find_build, this_build
from halfbyte.report.compare import Comparison, compare, ratio_interval, student_quantile
from halfbyte.report.schema import Case, Record, Sample, read
from tests.unit.cli_fakes import error_lines, halfbyte

REAL_MS = (
    0.680, 0.879, 1.087, 1.129, 1.192, 0.932, 1.223, 1.096, 0.523, 0.685, 1.258, 1.232,
    1.187, 1.215, 1.201, 1.120, 1.287, 1.032, 1.211, 1.278, 1.283, 0.755, 0.890, 1.474,
    1.094, 1.883, 1.270, 1.856, 0.651, 1.602, 3.214, 0.646, 1.564, 1.188, 1.315, 1.339,
    1.683, 1.520, 1.535, 1.266, 1.244, 1.006, 1.064, 1.161, 1.249, 1.599, 1.191, 1.755,
    1.528, 1.251, 1.356, 1.207, 0.773, 0.683, 1.255, 1.337, 1.327, 0.875, 1.276, 1.273,
)  # fmt: skip
"""Milliseconds a token of 60 repetitions of the pocket model, measured on a busy 2-core AMD EPYC with one thread."""

TRIALS = 400


def record(step_s: list[float], prompt_tokens: int = 8) -> Record:
    """A measurement with these times a token, and ten times that for the prompt."""
    samples = tuple(Sample(10 * s, 10 * s, (s, s), 12 * s) for s in step_s)
    return Record(
        time="", case=Case(prompt_tokens, 3), samples=samples, load_s=1, bytes_per_token=1, read_bandwidth=(),
        peak_bytes=None, check={}, machine={}, versions={}, model={"name": "test"}, settings={},
    )  # fmt: skip


def noisy(random: np.random.Generator, count: int, noise: float = 0.01, work: float = 1.0) -> list[float]:
    times: list[float] = (work * 0.01 * np.exp(noise * random.standard_normal(count))).tolist()
    return times


def decode(found: list[Comparison]) -> Comparison:
    return next(line for line in found if line.measure == "decode")


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_quantiles_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("pairs", [5, 10, 30])
def test_a_build_with_itself_shows_no_difference_19_times_in_20(pairs: int) -> None:
    random = np.random.default_rng(pairs)
    found = [compare([record(noisy(random, pairs))], [record(noisy(random, pairs))]) for _ in range(TRIALS)]
    silent = sum(all(line.verdict == "no difference" for line in lines) for lines in found)
    assert silent >= 0.93 * TRIALS


def test_so_do_real_samples() -> None:
    random, silent = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        times = random.permutation(REAL_MS)
        _, low, high = ratio_interval(times[:30].tolist(), times[30:].tolist(), 0.95)
        silent += low <= 1 <= high
    assert silent >= 0.93 * TRIALS


def test_three_per_cent_more_work_are_found() -> None:
    random = np.random.default_rng(3)
    found = [compare([record(noisy(random, 10))], [record(noisy(random, 10, work=1.03))]) for _ in range(TRIALS)]
    slower = sum(decode(lines).verdict == "B is slower" for lines in found)
    assert slower >= 0.99 * TRIALS
    assert np.mean([decode(lines).ratio for lines in found]) == pytest.approx(1.03, abs=2e-3)


def test_a_machine_that_drifts_from_run_to_run_is_noise_when_runs_take_turns() -> None:
    random = np.random.default_rng(4)
    false = 0
    for _ in range(100):
        drift = np.exp(0.05 * random.standard_normal((2, 5)))
        a, b = ([record(noisy(random, 5, work=work)) for work in side] for side in drift)
        found = decode(compare(a, b))
        assert found.runs
        assert found.pairs == 5
        false += found.verdict != "no difference"
    assert false <= 10


def test_a_disturbed_run_in_ten_does_not_hide_three_per_cent() -> None:
    random, slower = np.random.default_rng(6), 0
    for _ in range(100):
        a, b = noisy(random, 10), noisy(random, 10, work=1.03)
        a[int(random.integers(10))] *= 2
        slower += decode(compare([record(a)], [record(b)])).verdict == "B is slower"
    assert slower >= 95


def test_a_run_is_judged_by_its_lower_quartile() -> None:
    samples = [0.01] * 3 + [0.03] * 2
    runs = [record([s * (1 + 0.001 * i) for s in samples]) for i in range(5)]
    slower = [record([s * 1.1 * (1 + 0.001 * i) for s in samples[:3]] + [0.9] * 2) for i in range(5)]
    for line in compare(runs, slower):
        assert line.runs
        assert line.ratio == pytest.approx(1.1)


def test_less_time_is_faster() -> None:
    random = np.random.default_rng(5)
    found = decode(compare([record(noisy(random, 10))], [record(noisy(random, 10, work=0.5))]))
    assert found.verdict == "B is faster"
    assert "time × 0.498" in str(found)


def test_cases_must_be_the_same_and_repeated() -> None:
    with pytest.raises(UsageError, match="no case of the same model in common"):
        compare([record([0.1] * 5)], [record([0.1] * 5, prompt_tokens=9)])
    with pytest.raises(UsageError, match="4 pairs are too few"):
        compare([record([0.1] * 4)], [record([0.1] * 4)])


@pytest.fixture
def two_builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Builds that write measurements without measuring: the other one (A) takes 10% less. What was run, in order."""
    ran: list[tuple[str, list[str]]] = []

    def bench(build: Build, options: list[str], output: Path) -> None:
        ran.append(("B" if build == this_build() else "A", list(options)))
        work = 1.0 if build == this_build() else 0.9
        times = noisy(np.random.default_rng(len(ran)), 5, noise=1e-3, work=work)
        with output.open("a") as file:
            file.write(record(times).to_json() + "\n")

    monkeypatch.setattr(Build, "bench", bench)
    return ran


def checkout(folder: Path) -> Path:
    """A folder that looks like a checkout."""
    (folder / "src" / "halfbyte").mkdir(parents=True)
    (folder / "src" / "halfbyte" / "__init__.py").touch()
    return folder


def test_builds_take_turns_and_are_compared(tmp_path: Path, two_builds: list[tuple[str, list[str]]]) -> None:
    keep = tmp_path / "kept"
    other = str(checkout(tmp_path / "other"))
    result = halfbyte("bench", "against", other, "--runs", "5", "--keep", str(keep), "--threads", "1", "-p", "8")
    assert result.exit_code == 0
    assert "".join(name for name, _ in two_builds) == "ABBAABBAAB"
    assert all(options == ["--threads", "1", "-p", "8"] for _, options in two_builds)
    assert "decode: B is slower (time × 1.11" in result.stdout
    assert "5 pairs of runs" in result.stdout
    assert len((keep / "a.jsonl").read_text().splitlines()) == 5
    again = halfbyte("bench", "against", other, "--keep", str(keep))
    assert again.exit_code == 2
    assert "a.jsonl' exists" in error_lines(again)[0]


def test_ctrl_c_keeps_the_runs_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(_build: Build, _options: list[str], output: Path) -> None:
        if output.exists():
            raise KeyboardInterrupt
        output.write_text(record([0.01]).to_json() + "\n")

    monkeypatch.setattr(Build, "bench", bench)
    result = halfbyte("bench", "against", str(checkout(tmp_path / "other")), "--keep", str(tmp_path))
    assert result.exit_code == 130
    assert len(read(tmp_path / "a.jsonl")) == len(read(tmp_path / "b.jsonl")) == 1


def test_a_build_that_is_none_or_fails_is_a_sentence(tmp_path: Path) -> None:
    result = halfbyte("bench", "against", str(tmp_path))
    assert result.exit_code == 2
    assert "is not a build of Halfbyte" in error_lines(result)[0]
    with pytest.raises(UsageError, match=r"bench of .* failed: .*--layers only applies to --synthetic"):
        this_build().bench(["--layers", "2"], tmp_path / "none.jsonl")


BROKEN = """
import sys
print("pocket: checking against the reference", file=sys.stderr)
sys.exit("Traceback\\nModuleNotFoundError: No module named 'halfbyte.cpu._native'")
"""


def test_the_reason_of_a_failure_is_what_failed_not_what_came_before(tmp_path: Path) -> None:
    other = checkout(tmp_path / "other")
    (other / "src" / "halfbyte" / "__main__.py").write_text(BROKEN)
    result = halfbyte("bench", "against", str(other), "--runs", "5")
    assert result.exit_code == 2
    message, hint = error_lines(result)
    assert message.endswith("failed: ModuleNotFoundError: No module named 'halfbyte.cpu._native'")
    assert "not compiled" in hint


def test_a_checkout_is_measured_as_its_environment_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As README installs it: the package in `.venv` is compiled, the source folder is not."""
    other = checkout(tmp_path / "other")
    python = other / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "path=$PYTHONPATH" "$@" >> {tmp_path}/calls\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    with pytest.raises(UsageError, match=r"failed: exit code 1\. Try it alone: env -u PYTHONPATH .*-p 8$"):
        find_build(other).bench(["-p", "8"], tmp_path / "a.jsonl")
    assert (tmp_path / "calls").read_text().startswith("path= -m halfbyte bench -p 8 --output")


def test_the_command_reads_two_files(tmp_path: Path) -> None:
    for name, work in (("a", 1.0), ("b", 1.2)):
        times = noisy(np.random.default_rng(len(name)), 10, work=work)
        (tmp_path / name).write_text(record(times).to_json() + "\n")
    result = halfbyte("bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert result.exit_code == 0
    assert "test 8+3, decode: B is slower (time × 1.200" in result.stdout
    assert "a drift of the machine" in error_lines(result)[0]
