"""`bench --variants`: every combination by name, those that fail left out, and none mixed up with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.cpu.machine import describe
from halfbyte.errors import DeviceError, UsageError
from halfbyte.options import RunOptions
from halfbyte.report import bench, tables
from halfbyte.report.compare import compare
from halfbyte.report.schema import read
from halfbyte.report.subject import Settings, Subject, synthetic
from halfbyte.report.variants import FORMATS, variants
from tests.unit.cli_fakes import halfbyte

QUICK = ("-p", "4", "-n", "2", "-r", "5", "--warm-up", "0", "--threads", "1")


@pytest.fixture(autouse=True)
def _fast_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.cpu.machine.read_bandwidth", lambda threads: 10e9 * threads)


def test_axes_are_combined() -> None:
    found = variants(["formats", "activations"], Settings())
    assert [s.variant for s in found] == [f"{stored} {x}" for stored in FORMATS for x in ("int8", "f32")]
    assert (found[1].run.weights, found[1].run.activations) == ("q4g32", "f32")
    assert [s.run.kernels for s in variants(["kernels"], Settings())] == list(describe().kernels)


def test_kinds_and_devices_without_variants_are_refused() -> None:
    with pytest.raises(UsageError, match="'colours' is not a kind of variant"):
        variants(["colours"], Settings())
    with pytest.raises(UsageError, match="no variants"):
        variants(["formats"], Settings(RunOptions("reference")))


def test_variants_stand_side_by_side_and_one_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = bench.check

    def checked(subject: Subject, settings: Settings) -> object:
        if settings.run.activations == "f32":
            raise DeviceError("it computes something else")
        return check(subject, settings)

    monkeypatch.setattr(bench, "check", checked)
    file = tmp_path / "v.jsonl"
    result = halfbyte("bench", *QUICK, "--variants", "activations", "-o", str(file))
    assert result.exit_code == 0, result.stderr
    assert "f32 is left out: it computes something else" in result.stderr
    (record,) = read(file)
    assert tables.label(record) == "int8 4+2"
    assert json.loads(file.read_text())["settings"]["variant"] == "int8"
    monkeypatch.setattr(bench, "check", check)
    assert halfbyte("bench", *QUICK, "--variants", "kernels", "-o", str(file)).exit_code == 0
    assert {line.model for line in compare(read(file), read(file))} == {
        f"pocket {name}" for name in ("int8", *describe().kernels)
    }


def test_an_instruction_set_is_what_runs() -> None:
    subject = synthetic("llama-3.2-1b", layers=1).cut()
    settings = variants(["kernels"], Settings(RunOptions("cpu", threads=1)))[0]
    _, executor = subject.load(settings, context=8, sequences=1)
    assert getattr(executor, "isa", None) == settings.run.kernels == "generic"
