"""What becomes of a model on the CPU when its process forks or ends, or when its files change under it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from halfbyte import load
from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.errors import InvalidModelError
from halfbyte.models import build_spec
from tests.device.test_threads import chain

IDS = [1, 2, 3, 4, 5]


@pytest.fixture
def folder(shell_29m: Path, tmp_path: Path) -> Path:
    """A model in bf16 whose files may be changed."""
    for file in shell_29m.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def gguf(folder: Path, kind: str) -> Path:
    """The model as a GGUF file in one plain format."""
    checkpoint = open_checkpoint(folder)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    target = folder / f"{kind}.gguf"
    write_gguf(target, RepackedWeights(checkpoint, kind), spec, checkpoint.tokenizer_files(), kind="stored")
    return target


FILES: dict[str, Callable[[Path], tuple[Path, Path]]] = {
    "safetensors bf16": lambda folder: (folder, folder / "model.safetensors"),
    "gguf f16": lambda folder: 2 * (gguf(folder, "f16"),),  # type: ignore[return-value]
    "gguf f32": lambda folder: 2 * (gguf(folder, "f32"),),  # type: ignore[return-value]
}


@pytest.mark.parametrize("stored", FILES)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_a_model_whose_file_is_cut_short_says_so(folder: Path, stored: str, device: str) -> None:
    path, file = FILES[stored](folder)
    model = load(path, device, context=64, **({"threads": 2} if device == "cpu" else {}))
    assert model.generate(IDS, max_tokens=2, ignore_eos=True).new_tokens == 2
    os.truncate(file, file.stat().st_size // 3)
    for _ in range(2):
        with pytest.raises(InvalidModelError, match=f"{file.name} was cut short"):
            model.generate(IDS, max_tokens=2, ignore_eos=True)


def test_a_file_that_is_cut_short_while_the_model_answers_is_a_sentence(folder: Path) -> None:
    model, file = load(folder, "cpu", context=512, threads=2), folder / "model.safetensors"
    threading.Timer(0.2, os.truncate, (file, 5_000_000)).start()

    def answer_on_and_on() -> None:
        for _ in range(1000):
            model.generate(IDS, max_tokens=200, ignore_eos=True)

    with pytest.raises(InvalidModelError, match="cut short"):
        answer_on_and_on()


@pytest.mark.parametrize("weights", [None, "q4g32"])
def test_a_file_that_is_cut_short_while_it_is_loaded_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None
) -> None:
    """It is cut when half of the tensors have been read."""
    file, asked = folder / "model.safetensors", []
    weight = RepackedWeights.weight if weights else type(open_checkpoint(folder)).weight

    def cut(source: object, name: str) -> object:
        asked.append(name)
        if len(asked) == 20:
            os.truncate(file, 5000)
        return weight(source, name)  # type: ignore[arg-type]

    monkeypatch.setattr(RepackedWeights if weights else type(open_checkpoint(folder)), "weight", cut)
    with pytest.raises(InvalidModelError, match="cut short"):
        load(folder, "cpu", context=64, threads=2, weights=weights).generate(IDS, max_tokens=1, ignore_eos=True)


def test_a_file_that_was_cut_before_is_called_damaged(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)
    with pytest.raises(InvalidModelError, match="damaged"):
        load(folder, "cpu", context=64)


def test_a_model_goes_on_when_its_file_is_replaced(folder: Path) -> None:
    model = load(folder, "cpu", context=64, threads=2)
    before = model.generate(IDS, max_tokens=8, ignore_eos=True).token_ids
    (folder / "new").write_bytes(b"something else")
    (folder / "new").replace(folder / "model.safetensors")
    assert model.generate(IDS, max_tokens=8, ignore_eos=True).token_ids == before


def in_child(work: Callable[[], object], seconds: float = 60) -> int:
    """The exit code of a forked child that does this; it is ended if it takes too long."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise TimeoutError(f"the child did not end in {seconds} s")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_child_answers_as_its_parent_does(shell_29m: Path, threads: int) -> None:
    model = load(shell_29m, "cpu", context=64, threads=threads)
    expected = model.generate(IDS, max_tokens=8, ignore_eos=True).token_ids

    def child() -> None:
        assert model.generate(IDS, max_tokens=8, ignore_eos=True).token_ids == expected
        assert in_child(lambda: model.generate(IDS, max_tokens=8, ignore_eos=True)) == 0
        model.close()

    assert in_child(child) == 0
    assert model.generate(IDS, max_tokens=8, ignore_eos=True).token_ids == expected


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_its_parent_runs_can_run_too() -> None:
    program, running = chain(threads=2, steps=2000, size=256), threading.Event()

    def run() -> None:
        running.set()
        program.run(4, 0)

    thread = threading.Thread(target=run)
    thread.start()
    running.wait()
    time.sleep(0.02)
    several = [threading.Thread(target=program.run, args=(4, 0)) for _ in range(3)]

    def child() -> None:
        for one in several:
            one.start()
        for one in several:
            one.join()

    assert in_child(child) == 0
    thread.join()
    program.run(4, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_worker_processes_can_use_a_model_that_was_loaded_before(shell_29m: Path) -> None:
    model = load(shell_29m, "cpu", context=64, threads=2)
    expected = model.generate(IDS, max_tokens=4, ignore_eos=True).text
    answers = multiprocessing.get_context("fork").SimpleQueue()
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: answers.put(model.generate(IDS, max_tokens=4, ignore_eos=True).text)
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert answers.get() == expected


DAEMON = """
import os, sys, threading, time
from halfbyte import load

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, range(os.cpu_count()))  # a test's own process may be held to one processor

model = load(sys.argv[1], "cpu", context=512, threads=int(sys.argv[2]))
started = threading.Event()

def stream():
    while True:
        for token in model.stream([1, 2, 3], max_tokens=400, ignore_eos=True):
            started.set()

for _ in range(2):
    threading.Thread(target=stream, daemon=True).start()
started.wait()
time.sleep(float(sys.argv[3]))
print("done")
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_interpreter_may_end_while_a_daemon_thread_streams(shell_29m: Path, threads: int) -> None:
    for wait in (0.0, 0.013, 0.037):
        command = [sys.executable, "-c", DAEMON, str(shell_29m), str(threads), str(wait)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


INSIDE = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

inside = "import sys; sys.path[:] = %r; from halfbyte import load; load(%r, 'cpu')" % (sys.path, sys.argv[1])
try:
    failed = interpreters.run_string(interpreters.create(), inside)
except interpreters.RunFailedError as error:
    failed = str(error)
print(failed)
"""


def test_a_subinterpreter_is_refused_at_once(shell_29m: Path) -> None:
    command = [sys.executable, "-c", INSIDE, str(shell_29m)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "does not work in a subinterpreter" in ended.stdout, ended.stderr
    assert ended.returncode == 0


def test_programs_of_processes_do_not_share_what_they_write() -> None:
    """A child's run leaves its parent's arrays alone."""
    program = chain(threads=2, steps=3)
    program.run(4, 0)
    times = program.step_ns()
    assert in_child(lambda: program.run(4, 0)) == 0
    np.testing.assert_array_equal(program.step_ns(), times)
