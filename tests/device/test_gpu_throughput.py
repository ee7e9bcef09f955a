"""`halfbyte bench throughput` on a GPU: batches under way while tokens are read, and time that the host waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from halfbyte.options import RunOptions
from halfbyte.report import throughput_tables as tables
from halfbyte.report.subject import Settings, Subject
from halfbyte.report.throughput import throughput
from halfbyte.report.throughput_schema import ThroughputRecord
from halfbyte.report.workload import Workload
from tests.device.gpu import software_gpu, software_index
from tests.models.tiny import tiny

SETTINGS = Settings(RunOptions("gpu", gpu=software_index(), sequences=2), repeat=1, warm_up=1)


def test_every_figure_is_known_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset())
    model = replace(tiny("llama-3.2-3b"), weight_format="q4g32")
    about = {"name": "tiny", "synthetic": True, "config": {}}
    found: list[ThroughputRecord] = []
    subject = Subject("tiny", model.spec, model, about, None, 0.0)
    throughput(subject, SETTINGS, Workload(3, (4, 9), (6, 9), rate=50.0), lambda _: None, found.append)
    (record,) = found
    assert record.machine["gpu"] == software_gpu().name
    assert tables.NONE not in tables.terminal(record)
    assert all(request.finished for request in record.requests)
    assert all(step.host_s is not None and 0 <= step.host_s <= step.seconds for step in record.steps)
    assert sum(step.host_s or 0 for step in record.steps) < sum(step.seconds for step in record.steps)
