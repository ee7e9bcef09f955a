"""`halfbyte bench`: figures computed from raw samples, kept as they come, refused where the model computes nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.errors import ContextFullError, DeviceError, UsageError
from halfbyte.options import RunOptions
from halfbyte.plan import Batch
from halfbyte.plan.batch import Float32
from halfbyte.report import tables
from halfbyte.report.bench import bench, decode_bytes, evened
from halfbyte.report.schema import Case, Record, Sample, cases, read
from halfbyte.report.subject import Settings, stored, synthetic
from tests.unit.cli_fakes import error_lines, halfbyte

ONCE = Settings(RunOptions("cpu", threads=1), repeat=1, warm_up=0)
QUICK = ("-p", "8", "-n", "3", "-r", "1", "--warm-up", "0", "--threads", "1")


@pytest.fixture(autouse=True)
def _fast_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.cpu.machine.read_bandwidth", lambda threads: 10e9 * threads)


@pytest.fixture(scope="module")
def record() -> Record:
    """A case of two repetitions with round numbers."""
    sample = Sample(
        prefill_s=0.2, first_token_s=0.1, step_s=(0.01, 0.01, 0.01, 0.03), total_s=0.26, host_s=0.004,
        counters={"dispatches": 500.0},
    )  # fmt: skip
    return Record(
        time="2026-01-01T00:00:00+00:00", case=Case(100, 5, 7, 2),
        samples=(sample, replace(sample, prefill_s=0.22)), load_s=1.5, bytes_per_token=20e6,
        read_bandwidth=(9e9, 11e9), peak_bytes=123_000_000,
        check={"kl": 0.001, "same": 8, "tokens": 8, "layers": 2, "all_layers": 16}, machine={"processor": "Test CPU"},
        versions={}, model={"name": "test", "synthetic": True, "nbytes": 20e6},
        settings={"device": "cpu", "threads": 2}, device_bytes=456_000_000, gpu_s=0.002,
    )  # fmt: skip


def quick(model: str | None, *wanted: Case) -> list[Record]:
    return list(bench(stored(model), ONCE, list(wanted), lambda _: None))


def cells(record: Record) -> dict[str, str]:
    return {column.name: column.cell(record) for column in tables.COLUMNS}


def test_figures_follow_from_the_samples(record: Record) -> None:
    shown = cells(record)
    assert shown["prefill ms"] == "210.0 ±4.8%"
    assert shown["tokens/s"] == f"{2 * 4 / 0.06:.1f} ±0.0%"
    assert cells(replace(record, samples=record.samples[:1]))["prefill ms"] == "200.0"
    assert "±" not in tables.terminal([replace(record, samples=record.samples[:1])])
    alone, both = (tables.csv_text([replace(record, samples=record.samples[:n])]).splitlines()[1] for n in (1, 2))
    assert alone.count(",,") == both.count(",,") + 3
    assert (shown["ms/token p50"], shown["p95"], shown["p99"]) == ("10.000", "30.000", "30.000")
    assert shown["% of read bandwidth"] == f"{100 * 20e6 * (8 / 0.06) / 10e9:.0f}"
    assert shown["host ms/token"] == "1.000"
    assert shown["dispatches/token"] == f"{500 / 8}"
    assert shown["GPU ms/token"] == "1.000"
    assert (shown["host MB"], shown["device MB"]) == ("123", "456")


def test_what_is_unknown_is_a_dash_and_never_zero(record: Record) -> None:
    bare = replace(record.samples[0], prefill_s=None, host_s=None, counters={}, step_s=())
    shown = cells(replace(record, samples=(bare,), read_bandwidth=(), peak_bytes=None, device_bytes=None, gpu_s=None))
    unknown = {name for name, cell in shown.items() if cell == "–"}
    assert unknown >= {"prefill ms", "tokens/s", "p99", "dispatches/token", "GPU ms/token", "host ms/token", "host MB"}
    assert {name for name, cell in shown.items() if cell.startswith("0")} == {"total s"}
    assert tables.csv_text([replace(record, samples=(bare,))]).splitlines()[1].count(",,") >= 1


def test_tables_have_a_cell_a_figure_and_case(record: Record) -> None:
    lines = tables.markdown([record, record]).splitlines()
    assert "random weights" in lines[0]
    assert len({line.count("|") for line in lines[3:]}) == 1
    assert len(tables.csv_text([record, record]).splitlines()) == 3


def test_the_terminal_shows_tests_as_llama_bench_then_what_is_known(record: Record) -> None:
    model = {**record.model, "parameters": 28_900_000}
    lines = tables.terminal([replace(record, model=model)]).splitlines()
    assert lines[3].split() == ["model", "size", "params", "device", "test", "tokens/s"]
    subject = ["test", "20", "MB", "28.9", "M", "cpu", "×2"]
    assert lines[4].split() == [*subject, "pp100", "@", "d7", "×2", "954.5", "±", "45.5"]
    assert lines[5].split() == [*subject, "tg5", "@", "d107", "×2", "133.3", "±", "0.0"]
    bare = replace(record, samples=tuple(replace(s, counters={}) for s in record.samples), gpu_s=None)
    first = [line.split("  ")[0] for line in lines[8:]]
    left = [line.split("  ")[0] for line in tables.terminal([bare]).splitlines()[8:]]
    assert first[:2] == ["prefill tokens/s", "tokens/s"]
    assert [name for name in first if name not in left] == ["dispatches/token", "GPU ms/token"]


def test_a_narrow_terminal_gets_every_case_and_no_longer_lines(record: Record) -> None:
    many = [replace(record, case=replace(record.case, prompt_tokens=tokens)) for tokens in (8, 16, 32, 64, 128, 256)]
    shown = tables.terminal(many, 60)
    assert max(map(len, shown.splitlines())) <= 60
    assert all(each.case.label in " ".join(shown.split()) for each in many)
    assert max(map(len, tables.terminal(many).splitlines())) > 60


def test_every_variant_has_its_own_size_and_check_above_the_table(record: Record) -> None:
    small = replace(record, settings={**record.settings, "variant": "q4g32"})
    large = replace(
        record, settings={**record.settings, "variant": "f16"}, model={**record.model, "nbytes": 59e6},
        check={**record.check, "same": 7, "kl": 0.0011, "layers": 16},
    )  # fmt: skip
    lines = tables.terminal([small, large]).splitlines()
    assert lines[1].startswith(
        "q4g32: 20 MB; correctness check passed: 8 of 8 tokens match the reference (KL 0.001 nats"
    )
    assert lines[2] == "f16: 59 MB; correctness check passed: 7 of 8 tokens match the reference (KL 0.0011 nats)."


def test_a_record_survives_its_file(record: Record, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(record.to_json() + "\n")
    assert read(tmp_path / "a.jsonl") == [record]


def test_lines_from_before_there_were_gpu_columns_are_read(record: Record, tmp_path: Path) -> None:
    values = json.loads(record.to_json())
    for name in ("device_bytes", "gpu_s"):
        del values[name]
    (tmp_path / "a.jsonl").write_text(json.dumps(values))
    assert read(tmp_path / "a.jsonl") == [replace(record, device_bytes=None, gpu_s=None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no measurements"),
        ("{", "line 1: it is not JSON"),
        ("[]", "was not written by bench"),
        ('{"schema": 1, "benchmark": "peers"}', "was not written by bench"),
        ('{"schema": 2, "kind": "halfbyte bench"}', "its schema is 2; this version reads 1"),
        ('{"schema": 1, "kind": "halfbyte bench"}', "a field is missing or wrong: 'time'"),
        ("\xff", "it is not UTF-8 text"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as raised:
        read(file)
    assert words in raised.value.message


def test_every_combination_is_a_case() -> None:
    assert len(cases([1, 2], [3, 4, 5], [0, 6], [1])) == 12
    with pytest.raises(UsageError, match="cannot be measured"):
        cases([0], [1], [0], [1])


def test_the_pocket_model_is_checked_and_measured() -> None:
    plain, deep, both = quick(None, Case(8, 4), Case(8, 4, depth=40), Case(8, 4, depth=40, batch=2))
    assert plain.check["layers"] == plain.check["all_layers"]
    assert plain.check["kl"] < 0.02
    assert set(plain.model["hashes"]) == {"config.json", "halfbyte.json"}
    assert plain.settings["threads"] == 1
    assert [len(r.samples[0].step_s) for r in (plain, deep, both)] == [3, 3, 3]
    assert plain.samples[0].host_s is not None
    assert plain.samples[0].host_s > 0
    assert deep.samples[0].prefill_s is not None
    assert both.samples[0].prefill_s is None


def test_decoding_reads_the_weights_once_a_step_and_each_cache() -> None:
    subject = stored(None)
    plan, _ = subject.load(ONCE, context=64, sequences=2)
    attention = subject.spec.attentions[0]
    position = 2 * 2 * attention.kv_heads * attention.head_dim * len(subject.spec.layers)
    one, two = decode_bytes(plan, Case(10, 4)), decode_bytes(plan, Case(10, 4, batch=2))
    assert one - 12 * position == pytest.approx(2 * (two - 12 * position))
    assert decode_bytes(plan, Case(20, 4)) - one == pytest.approx(10 * position)


def test_tokens_that_come_together_share_their_time() -> None:
    assert evened([0.2, 0.0, 0.3, 0.001, 0.1]) == pytest.approx((0.1, 0.1, 0.1505, 0.1505, 0.1))
    assert evened([0.1, 0.2]) == (0.1, 0.2)
    assert evened([]) == ()


def test_random_weights_need_no_file() -> None:
    subject = synthetic("llama-3.2-1b", layers=1)
    record = next(bench(subject, ONCE, [Case(4, 2)], lambda _: None))
    assert record.model["synthetic"] is True
    assert record.model["nbytes"] > 100e6
    assert record.check["same"] == record.check["tokens"]


class Wrong(CpuExecutor):
    """A CPU executor with one wrong kernel."""

    def run(self, batch: Batch) -> Float32:
        return np.roll(super().run(batch), 1, axis=1)


def test_no_speed_of_a_model_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.cpu.factory.CpuExecutor", Wrong)
    with pytest.raises(DeviceError, match="pocket is not timed: on cpu it differs from the reference"):
        quick(None, Case(8, 2))


def test_a_case_beyond_the_context_is_refused_before_anything_runs() -> None:
    with pytest.raises(ContextFullError, match="needs 1,000,002 positions"):
        quick(None, Case(1_000_000, 2))


def test_rows_are_printed_and_appended(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    result = halfbyte("bench", *QUICK, "--json", "--output", str(file))
    assert result.exit_code == 0
    assert result.stdout == file.read_text()
    halfbyte("bench", *QUICK, "--output", str(file))
    assert [json.loads(line)["schema"] for line in file.read_text().splitlines()] == [1, 1]


def test_without_arguments_it_measures_the_pocket_model(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("halfbyte.report.bench.bench", lambda *given: asked.extend(given) or iter([record]))
    assert halfbyte("bench").exit_code == 0
    assert (asked[0].name, asked[2]) == ("pocket", [Case(128, 32)])


def test_ctrl_c_keeps_finished_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, record: Record) -> None:
    def interrupted(*_: Any) -> Iterator[Record]:
        yield record
        raise KeyboardInterrupt

    monkeypatch.setattr("halfbyte.report.bench.bench", interrupted)
    result = halfbyte("bench", "--output", str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 130
    assert read(tmp_path / "rows.jsonl") == [record]
    assert "tokens/s" in result.stdout


def test_a_full_disk_is_a_sentence_and_the_row_is_shown(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    monkeypatch.setattr("halfbyte.report.bench.bench", lambda *_: iter([record]))
    result = halfbyte("bench", "--output", "/dev/full")
    assert result.exit_code == 74
    assert "the disk is full" in error_lines(result)[0]
    assert "tokens/s" in result.stdout
    missing = halfbyte("bench", "--output", str(Path("/no/such/folder/rows.jsonl")))
    assert (missing.exit_code, missing.stdout) == (74, "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--synthetic", "gpt-9"), 2, "no model 'gpt-9' in the catalog"),
        (("-m", "/no/such/folder"), 3, "/no/such/folder"),
        (("--synthetic", "phi-4", "-m", "x"), 2, "--synthetic cannot be combined with a stored model"),
        (("--layers", "2"), 2, "--layers only applies to --synthetic"),
        (("-p", "0"), 2, "a prompt of 0 tokens, 32 new ones, depth 0 and batch 1 cannot be measured"),
        (("-p", "8,x"), 2, "'8,x' is not a list of numbers"),
        (("-p", "999999"), 6, "positions; pocket has"),
        (("--each-token", "--device", "cpu"), 2, "device cpu hands back each token anyway"),
        (("--json", "--csv"), 2, "cannot be combined"),
        (("compare", "/no/a", "/no/b"), 2, "cannot read '/no/a'"),
    ],
)
def test_mistakes_are_sentences(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = halfbyte("bench", *arguments)
    assert result.exit_code == code
    assert words in error_lines(result)[0]
