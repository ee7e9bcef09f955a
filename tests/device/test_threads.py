"""Threads of the CPU executor: how many, that they agree, sleep, and leave Python alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from halfbyte import system
from halfbyte.cpu import CpuExecutor, _native, machine
from halfbyte.errors import UsageError
from halfbyte.plan.ops import Linear
from tests.device.test_cpu_ops import Case, Source, attention_case, batch, conversation, hostile


def chain(threads: int, steps: int, size: int = 64, *, spin: bool = True) -> _native.Program:
    """A program of `steps` products that hand one activation on, scaled down so that it stays finite."""
    program = _native.Program(threads, 8, spin=spin)
    values = hostile(size, size).reshape(-1).view(np.uint8)
    weights = program.matrix("f32", values, None, None, size, size, 0)
    x, y = np.ones((4, size), np.float32), np.empty((4, size), np.float32)
    for _ in range(steps):
        program.step("Linear", "tokens", {"x": x, "weights": [weights], "out": y})
        program.step("Softcap", "tokens", {"x": y, "out": x, "cap": 1.0})
    return program


@pytest.mark.parametrize("threads", [2, 3, 5, 8])
def test_any_number_of_threads_gives_the_same_products(threads: int) -> None:
    for tokens in (1, 4, 33):
        for stored in ("q4g32", "f16"):
            case = Case(tokens)
            x = case.activation(hostile(tokens, 160))
            weight = case.weight("w", hostile(100, 160), stored)
            plan = case.plan(case.add(Linear(x, (weight,), case.out(100))))
            one, many = (CpuExecutor(plan, Source(case), threads=n).run(batch(tokens)).copy() for n in (1, threads))
            np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("threads", [2, 4, 7])
def test_attention_split_along_the_context_agrees(threads: int) -> None:
    case, out = attention_case((4, 1, 20), "f32", None, None, 9)
    plan = case.plan(out)
    one, many = (CpuExecutor(plan, Source(case), threads=n) for n in (1, threads))
    for fed in conversation(np.arange(18, dtype=np.int32).reshape(2, 9)):
        np.testing.assert_allclose(many.run(fed), one.run(fed), rtol=0, atol=1e-4)


def test_more_threads_than_cores_still_finish() -> None:
    program = chain(threads=8, steps=20)
    for _ in range(20):
        program.run(4, 0)
        assert (program.step_ns() > 0).all()
    assert program.threads == 8


def test_idle_threads_sleep() -> None:
    program = chain(threads=4, steps=2)
    program.run(4, 0)
    time.sleep(0.02)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1
    program.run(4, 0)


def test_threads_end_with_their_program() -> None:
    """By their ids: threads of others, such as a GPU driver's, may end meanwhile."""
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    program = chain(threads=6, steps=1)
    own = set(tasks.iterdir()) - before
    assert len(own) == 5
    del program
    assert not own & set(tasks.iterdir())


def test_python_runs_on_while_a_program_does() -> None:
    program, ran = chain(threads=1, steps=3000, size=512), threading.Event()
    thread = threading.Thread(target=lambda: (program.run(4, 0), ran.set()))
    thread.start()
    ticks = 0
    while not ran.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 10


def test_concurrent_runs_wait_for_each_other() -> None:
    """Each run of one program ends with the result of its own steps."""
    program = chain(threads=2, steps=50)
    threads = [threading.Thread(target=program.run, args=(4, 0)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_times_of_steps_add_up() -> None:
    program = chain(threads=2, steps=10, size=256)
    start = time.perf_counter_ns()
    program.run(4, 0)
    elapsed = time.perf_counter_ns() - start
    times = program.step_ns()
    assert times.shape == (20,)
    assert (times > 0).all()
    assert elapsed * 0.1 < times.sum() <= elapsed


@pytest.mark.parametrize("threads", [0, -1, 1 + machine.most_threads(), 1_000_000])
def test_impossible_numbers_of_threads_are_refused(threads: int) -> None:
    case = Case(1)
    plan = case.plan(case.activation(hostile(1, 8)))
    with pytest.raises(UsageError, match=f"threads is {threads}"):
        CpuExecutor(plan, Source(case), threads=threads)


Groups = Callable[[dict[str, str], str], float | None]


@pytest.fixture
def quota(tmp_path: Path) -> Groups:
    """The quota found where control groups hold these files and the process has this membership."""

    def find(files: dict[str, str], membership: str) -> float | None:
        for name, text in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "self").write_text(membership)
        return system.cpu_quota(tmp_path / "cgroup", tmp_path / "self")

    return find


V1 = "9:name=systemd:/\n2:cpu,cpuacct:/docker/abc\n1:cpuset:/\n"


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3.0),
        ({"a/cpu.max": "400000 100000\n", "cpu.max": "200000 100000\n"}, "0::/a\n", 2.0),
        ({"cpu.max": "250000 100000\n"}, "0::/not/visible/here\n", 2.5),
        ({"cpu/docker/abc/cpu.cfs_quota_us": "50000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, V1, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, None),
        ({"cpu/cpu.cfs_quota_us": "700000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1, 7.0),
        ({"cpu.max": "garbage\n"}, "0::/\n", None),
    ],
)
def test_a_containers_quota(quota: Groups, files: dict[str, str], membership: str, expected: float | None) -> None:
    assert quota(files, membership) == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (0.5, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_threads_never_exceed_cores_or_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: 4)
    monkeypatch.setattr(system, "cpu_quota", lambda: quota)
    assert machine.default_threads() == expected


@pytest.mark.parametrize(("said", "expected"), [("3", 3), ("2,1", 2), ("99", 6), ("0", 4), ("", 4), ("many", 4)])
def test_openmp_variable_says_how_many_threads(monkeypatch: pytest.MonkeyPatch, said: str, expected: int) -> None:
    monkeypatch.setattr(system, "usable_cores", lambda: 4)
    monkeypatch.setattr(system, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "processors", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert machine.default_threads() == expected


def test_affinity_bounds_the_cores() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert system.usable_cores() == 1
        assert machine.default_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_machine_describes_itself() -> None:
    found = machine.describe()
    assert found.brand
    assert found.isa == found.kernels[-1]
    assert found.kernels[0] == "generic"
    assert 1 <= found.threads <= found.cores <= (os.cpu_count() or 1)
    assert 64 << 20 < found.memory_available_bytes <= found.memory_bytes
    assert 0.5e9 < machine.read_bandwidth(1) < 1e12
