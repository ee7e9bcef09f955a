"""The prompt of `chat`: what keys make of a message, history, completion, and the whole on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_input, create_pipe_input
from prompt_toolkit.output import DummyOutput

from halfbyte.cli.chat_commands import commands
from halfbyte.cli.chat_prompt import typed
from halfbyte.cli.history import chat_history, history_path
from halfbyte.cli.typeahead import keys_kept

ENTER, TAB, CTRL_C, CTRL_D, CTRL_J, CTRL_R, UP = "\r", "\t", "\x03", "\x04", "\n", "\x12", "\x1b[A"
ALT_ENTER = "\x1b\r"


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of this test's own for the history."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def entered(keyboard: PipeInput, *keys: str) -> list[str]:
    """What the prompt gives for keys, pressed each time that it asks, and then Ctrl-D."""
    coming = iter((*keys, CTRL_D))
    keyboard.send_text(next(coming))
    given = []
    for text in typed(commands(), input=keyboard, output=DummyOutput()):
        given.append(text)
        keyboard.send_text(next(coming, ""))
    return given


def pasted(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (pasted("one\r\ntwo\nthree") + ENTER, "one\ntwo\nthree"),
        ("one" + CTRL_J + "two" + ENTER, "one\ntwo"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("one\\" + ENTER + "two" + ENTER, "one\ntwo"),
        ('"""one' + ENTER + "two" + ENTER + '"""' + ENTER, '"""one\ntwo\n"""'),
        (pasted("ls \\\n  -l") + ENTER, "ls \\\n  -l"),
        ("grüß 你好" + ENTER, "grüß 你好"),
    ],
)
def test_a_message_may_have_several_lines(keyboard: PipeInput, keys: str, message: str) -> None:
    assert entered(keyboard, keys) == [message]


def test_each_enter_sends_a_message(keyboard: PipeInput) -> None:
    assert entered(keyboard, "one" + ENTER, "two" + ENTER) == ["one", "two"]


def test_a_second_ctrl_c_leaves_and_the_first_says_so(keyboard: PipeInput, capsys: pytest.CaptureFixture[str]) -> None:
    keys = "half" + CTRL_C + "one" + ENTER + CTRL_C + CTRL_C + "never" + ENTER
    assert entered(keyboard, keys) == ["one"]
    assert capsys.readouterr().err == "(Ctrl-C once more leaves)\n" * 2


def test_earlier_sessions_can_be_searched(keyboard: PipeInput) -> None:
    entered(keyboard, pasted("first\nline") + ENTER, "second" + ENTER)
    with create_pipe_input() as later:
        assert entered(later, CTRL_R + "lin" + ENTER + ENTER, UP + UP + UP + ENTER) == ["first\nline", "second"]


def test_the_history_is_for_its_user_only(keyboard: PipeInput, state: Path) -> None:
    entered(keyboard, "a question" + ENTER)
    assert history_path().is_relative_to(state)
    assert "a question" in history_path().read_text()
    assert history_path().stat().st_mode & 0o777 == 0o600
    assert history_path().parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("lines", "kept"), [(11, ["oldest", "old\nin two lines", "new"]), (8, ["old\nin two lines", "new"]), (4, ["new"])]
)
def test_a_long_history_is_cut_to_its_newest_whole_entries(
    keyboard: PipeInput, monkeypatch: pytest.MonkeyPatch, lines: int, kept: list[str]
) -> None:
    entered(keyboard, "oldest" + ENTER, pasted("old\nin two lines") + ENTER, "new" + ENTER)
    monkeypatch.setattr("halfbyte.cli.history.KEPT_LINES", lines)
    assert list(chat_history().load_history_strings()) == kept[::-1]
    assert len(history_path().read_text().splitlines()) <= lines
    assert history_path().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in history_path().parent.iterdir()] == [history_path().name]


def test_lines_that_readline_kept_are_found(keyboard: PipeInput) -> None:
    history_path().parent.mkdir(parents=True)
    history_path().write_text("older\nold\n")
    assert entered(keyboard, "new" + ENTER, UP + UP + ENTER) == ["new", "old"]
    with create_pipe_input() as later:
        assert entered(later, CTRL_R + "older" + ENTER + ENTER) == ["older"]


def test_no_place_for_a_history_is_no_error(keyboard: PipeInput, state: Path) -> None:
    state.touch()
    assert entered(keyboard, "one" + ENTER, UP + ENTER) == ["one", "one"]
    assert state.is_file()


def test_commands_and_their_arguments_are_completed(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    keys = ("/reg" + TAB, "/set temp" + TAB + " 1", "/fil" + TAB + f"{tmp_path}/no" + TAB)
    assert entered(keyboard, *(each + ENTER for each in keys)) == [
        "/regenerate", "/set temperature 1", f"/file {tmp_path}/notes.txt",
    ]  # fmt: skip


def test_what_is_no_command_is_not_completed(keyboard: PipeInput) -> None:
    assert entered(keyboard, "reg" + TAB + ENTER) == ["reg"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal that is standard input."""
    ours, theirs = pty.openpty()
    with open(theirs, encoding="utf-8") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield ours
    os.close(ours)


def entered_ahead(terminal: int, before: bytes, meanwhile: bytes) -> list[str]:
    """What the prompt gives where keys were pressed before the program began, and after the first entry."""
    os.write(terminal, before)
    given = []
    with keys_kept() as keys:
        for text in typed(commands(), keys, input=create_input(sys.stdin), output=DummyOutput()):
            os.write(terminal, b"" if given else meanwhile)
            given.append(text)
    return given


@pytest.mark.parametrize(
    ("before", "meanwhile", "given"),
    [
        (b"one\r", b"two\rthree\r\x04", ["one", "two", "three"]),
        (b"one\rtwo\r\x04", b"never\r", ["one", "two"]),
        (b"one\rtw", b"o\r\x04", ["one", "two"]),
        (b"gr\xc3\xbc\xc3\x9f\n", b"one\ntwo\r\x04", ["grüß", "one\ntwo"]),
    ],
)
def test_what_is_typed_ahead_is_entered(terminal: int, before: bytes, meanwhile: bytes, given: list[str]) -> None:
    assert entered_ahead(terminal, before, meanwhile) == given


def test_what_is_typed_while_an_answer_runs_is_not_shown_in_it(terminal: int) -> None:
    unchanged = termios.tcgetattr(sys.stdin)
    with keys_kept():
        os.write(terminal, b"one\r")
        assert not select.select([terminal], [], [], 0.1)[0]
    assert termios.tcgetattr(sys.stdin) == unchanged


def test_ctrl_c_stops_what_runs_while_keys_are_kept(terminal: int) -> None:
    with keys_kept():
        assert termios.tcgetattr(sys.stdin)[3] & termios.ISIG


def on_terminal(*options: str, **environment: str) -> str:
    """What `halfbyte chat` shows when it is asked one question and left with Ctrl-D."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "halfbyte", "chat", *options], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
    ):  # fmt: skip
        os.close(theirs)
        shown = _until(ours, ">")
        os.write(ours, b"How do I find big files?\r")
        shown += _until(ours, r"\+100M.*>")
        os.write(ours, CTRL_D.encode())
        shown += _until(ours, "(?!)")
    os.close(ours)
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown)


def _until(terminal: int, pattern: str) -> str:
    """What comes up to a text, or to the end."""
    shown = ""
    while not re.search(pattern, shown, re.DOTALL):
        try:
            shown += os.read(terminal, 65536).decode()
        except OSError:  # Linux says so when the other end is closed
            break
    return shown


@pytest.mark.parametrize(
    ("options", "environment", "answer"),
    [
        ([], {}, "Use find:"),
        (["--plain"], {}, "Use `find`:"),
        ([], {"NO_COLOR": "1"}, "Use `find`:"),
    ],
)
def test_answers_are_markdown_on_a_terminal_that_wants_it(
    options: list[str], environment: dict[str, str], answer: str
) -> None:
    shown = on_terminal(*options, **environment)
    assert "/help lists commands, Ctrl-D leaves." in shown
    assert answer in shown
    assert "Traceback" not in shown
