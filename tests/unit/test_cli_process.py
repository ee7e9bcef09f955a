"""The command as a process: closed streams, signals, terminals of any width, and two that want the same file."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from halfbyte import atomic
from tests.unit.cli_fakes import error_lines, halfbyte
from tests.unit.test_quantize_options import LETTERS, quantizable

COMMAND = [sys.executable, "-m", "halfbyte"]
PATIENCE_S = 600


def run(*arguments: str, streams: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command under a shell, which closes streams."""
    line = ["sh", "-c", f'exec "$@" {streams}', "sh", *COMMAND, *arguments]
    return subprocess.run(
        line, capture_output=True, text=True, env={**os.environ, **environment}, timeout=PATIENCE_S, check=False
    )


def on_terminal(*arguments: str, width: int = 80, typed: str = "", **environment: str) -> str:
    """What a command prints on a terminal of a width, where something is typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    printed = b"".join(_chunks(ours))
    process.wait(PATIENCE_S)
    return printed.decode().replace("\r\n", "\n")


def too_wide(lines: list[str], width: int) -> list[str]:
    """Lines that do not fit a terminal, but for those of a label and a path."""
    return [line for line in lines if len(line) > width and not re.fullmatch(r"\S+ +/\S+", line)]


def _chunks(handle: int) -> Iterator[bytes]:
    with os.fdopen(handle, "rb", buffering=0) as file:
        while True:
            try:
                chunk = file.read(65536)
            except OSError:  # Linux says so when the other end is closed
                return
            if not chunk:
                return
            yield chunk


@pytest.mark.parametrize("command", [["run", "What does ls do?"], ["models", "show"], ["plan"], ["run", "--help"]])
def test_a_closed_standard_output_is_a_sentence(command: list[str]) -> None:
    done = run(*command, streams=">&-")
    assert done.returncode == 74
    assert done.stderr.splitlines()[0] == "error: standard output is closed."


@pytest.mark.parametrize(("command", "code"), [(["run", "-"], 2), (["run"], 2), (["chat"], 0)])
def test_a_closed_standard_input_is_an_empty_one(command: list[str], code: int) -> None:
    done = run(*command, streams="<&-")
    assert (done.returncode, done.stdout) == (code, "")
    assert "bug" not in done.stderr
    if code:
        assert done.stderr.startswith("error: the prompt is empty.")


def test_a_closed_standard_error_leaves_the_answer_and_the_code() -> None:
    answered = run("run", "What does ls do?", streams="2>&-")
    assert (answered.returncode, answered.stdout) == (0, "List directory contents.\n")
    assert run("run", "-m", "./none", "x", streams="2>&-").returncode == 3


def test_nothing_is_written_into_a_file_in_the_place_of_a_closed_stream(tmp_path: Path, tiny_model: Path) -> None:
    target = tmp_path / "t.gguf"
    done = run("export", str(tiny_model), str(target), "--kind", "f16", streams="2>&-")
    assert done.returncode == 0
    assert target.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_errors_are_coloured_only_where_that_is_wanted(environment: dict[str, str], coloured: bool) -> None:
    printed = on_terminal("run", "-m", "./none", "x", **environment)
    assert ("\x1b[" in printed) == coloured
    assert "./none does not exist." in printed


def test_a_prompt_that_looks_like_a_model_is_asked_about() -> None:
    printed = on_terminal("run", "and/or", "-n", "4", "--threads", "1", typed="n\n")
    assert "'and/or' looks like a model. Chat with it?" in printed
    assert "(stopped after 4 tokens: --max-tokens 4)" in printed


@pytest.mark.parametrize(
    ("command", "width"),
    [(["plan"], 80), (["plan"], 120), (["plan"], 240), (["models", "show"], 80), (["doctor"], 80), (["doctor"], 120)],
)
def test_nothing_is_cut_or_broken_on_a_terminal(command: list[str], width: int) -> None:
    printed = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(*command, width=width))
    piped = halfbyte(*command).stdout
    assert "…" not in printed
    assert too_wide(printed.splitlines(), width) == []
    words = set(re.findall(r"\S{9,}", piped)) - set(re.findall(r"\S*\d\S*", piped))
    assert words <= set(printed.split())


def test_a_plan_on_a_narrow_terminal_has_all_its_columns() -> None:
    printed = on_terminal("plan", "--tokens", "4", width=80)
    plan = json.loads(halfbyte("plan", "--tokens", "4", "--json").stdout)
    assert re.search(r"#  step +bytes +flops", printed)
    for tensor in {name for step in plan["steps"] for name in (*step["reads"], *step["writes"])}:
        assert f"{tensor}[" in printed


@pytest.mark.parametrize("option", [[], ["--show"]])
def test_tuning_without_a_gpu_is_still_json(option: list[str]) -> None:
    result = halfbyte("tune", "--device", "cpu", "--json", *option)
    assert json.loads(result.stdout) == {"device": "cpu", "driver": None, "rows": [], "verdicts": []}
    assert "CPU kernels need no tuning" in result.stderr


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable("llama-3.2-1b", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(np.random.default_rng(4).choice(LETTERS, 3000)))
    return file


def gptq(model: Path, target: Path, text: Path, tokens: int = 1024) -> list[str]:
    calibration = ["--calibration", str(text), "--calibration-tokens", str(tokens)]
    return ["quantize", str(model), str(target), "--method", "gptq", *calibration]


STOPPED = """
import os, signal, sys, time
from halfbyte.quantization import work
finish = work.WorkFolder.finish
def once(self, layers):
    finish(self, layers)
    if layers == AFTER:
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(60)  # any thread of the process may be the one that gets it
work.WorkFolder.finish = once
from halfbyte.cli import main
main()
"""


def stopped(number: str, arguments: list[str], after: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a signal once so many layers are finished."""
    code = STOPPED.replace("NUMBER", number).replace("AFTER", str(after))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [("SIGINT", 130, True), ("SIGTERM", 143, True), ("SIGKILL", -9, False)],
)
def test_stopped_work_is_resumed_and_nothing_is_left(
    tiny_model: Path, text: Path, tmp_path: Path, number: str, code: int, said: bool
) -> None:
    done = stopped(number, gptq(tiny_model, tmp_path / "out", text))
    assert done.returncode == code, done
    assert ("Interrupted. The finished work is kept: run the same command again to resume." in done.stderr) == said
    assert ".out.work" in files(tmp_path)
    if said:
        assert files(tmp_path) == [".out.work"]
    before = json.loads((tmp_path / ".out.work" / "state.json").read_text())["finished"]
    assert before == 2
    assert halfbyte(*gptq(tiny_model, tmp_path / "out", text)).exit_code == 0
    assert files(tmp_path) == ["out"]
    (tmp_path / "fresh").mkdir()
    assert halfbyte(*gptq(tiny_model, tmp_path / "fresh" / "out", text)).exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh" / "out")


def test_a_write_that_was_killed_leaves_nothing_after_the_next(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom halfbyte import atomic\n"
        "atomic._put_in_place = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from halfbyte.cli import main\nmain()"
    )
    for command in (["quantize", str(tiny_model), "out"], ["export", str(tiny_model), "out.gguf", "--kind", "f16"]):
        killed = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, timeout=PATIENCE_S, check=False)
        assert killed.returncode == -9
        assert files(tmp_path) != []
        assert subprocess.run([*COMMAND, *command], cwd=tmp_path, timeout=PATIENCE_S, check=False).returncode == 0
        assert files(tmp_path) == [command[2]]
        _remove(tmp_path / command[2])


def _remove(path: Path) -> None:
    atomic._remove(path)


def test_the_second_of_two_writers_is_refused_before_any_work(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfbyte.cli.progress._lines", lambda: lambda *step: pytest.fail(f"work has begun: {step}"))
    commands: list[Callable[[Path], list[str]]] = [
        lambda target: ["quantize", str(tiny_model), str(target)],
        lambda target: gptq(tiny_model, target, text),
        lambda target: ["export", str(tiny_model), str(target)],
    ]
    for command in commands:
        target = tmp_path / "out.gguf"
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = halfbyte(*command(target))
        holder.communicate("go\n", timeout=PATIENCE_S)
        assert result.exit_code == 2
        assert error_lines(result)[0] == f"error: {target} is being written by another process ({holder.pid})."
        assert files(tmp_path) == []


HOLDING = """
import sys
from pathlib import Path
from halfbyte import atomic
with atomic.claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_unfinished_work_of_other_options_is_never_discarded_silently(
    tiny_model: Path, text: Path, tmp_path: Path
) -> None:
    asked = gptq(tiny_model, tmp_path / "out", text)
    assert stopped("SIGKILL", asked).returncode == -9
    kept = contents(tmp_path / ".out.work")
    for other in (gptq(tiny_model, tmp_path / "out", text, 512), ["quantize", str(tiny_model), str(tmp_path / "out")]):
        result = halfbyte(*other)
        message, hint = error_lines(result)
        assert result.exit_code == 2
        assert "holds unfinished work of a command with other options" in message
        assert "--restart" in hint
        assert contents(tmp_path / ".out.work") == kept
    assert (
        "calibration tokens 1024 instead of 512"
        in error_lines(halfbyte(*gptq(tiny_model, tmp_path / "out", text, 512)))[0]
    )
    assert halfbyte("quantize", str(tiny_model), str(tmp_path / "out"), "--restart").exit_code == 0
    assert files(tmp_path) == ["out"]


def test_a_disk_that_fills_up_is_a_sentence_with_sizes_and_the_work_stays(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gptq(tiny_model, tmp_path / "out", text)

    def full(path: Path, data: str | bytes) -> None:
        if json.loads(data)["finished"] == 2:
            raise OSError(28, "No space left on device")
        path.write_text(str(data))

    with monkeypatch.context() as patch:
        patch.setattr("halfbyte.quantization.work.atomic.write", full)
        result = halfbyte(*asked)
    message, hint = error_lines(result)
    assert result.exit_code == 1
    assert re.search(r"disk of .*out is full: about [\d.]+ [kM]B are needed, [\d.]+ [GT]B are free", message)
    assert "Free some space" in hint
    assert files(tmp_path) == [".out.work"]
    assert halfbyte(*asked).exit_code == 0
    assert files(tmp_path) == ["out"]


def test_the_work_is_part_of_the_space_that_is_checked_before(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert halfbyte("quantize", str(tiny_model), str(tmp_path / "rtn")).exit_code == 0
    result_bytes = sum(path.stat().st_size for path in (tmp_path / "rtn").iterdir())
    enough = type("Usage", (), {"free": 2 * result_bytes})()
    monkeypatch.setattr("halfbyte.atomic.shutil.disk_usage", lambda path: enough)
    assert halfbyte("quantize", str(tiny_model), str(tmp_path / "again")).exit_code == 0
    refused = halfbyte(*gptq(tiny_model, tmp_path / "out", text))
    assert refused.exit_code == 1
    assert "is full" in error_lines(refused)[0]
    assert files(tmp_path) == ["again", "rtn"]
