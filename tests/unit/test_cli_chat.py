"""`halfbyte chat`: turns, commands, and what survives an error or Ctrl-C."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from halfbyte.cli.history import history_path, line_editing
from halfbyte.errors import ContextFullError, TemplateError
from tests.unit.cli_fakes import error_lines, halfbyte, use_fake


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def test_each_turn_sees_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["He", "llo"], ["Bye"])
    result = halfbyte("chat", stdin="hi\n\nbye\n")
    assert (result.exit_code, result.stdout) == (0, "Hello\nBye\n")
    assert [messages for messages, _ in model.asked] == [
        [user("hi")],
        [user("hi"), assistant("Hello"), user("bye")],
    ]


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"])
    halfbyte("chat", "--system", "S", "-t", "0.5", "--seed", "3", "-n", "9", "--stop", "E", stdin="hi\n")
    messages, options = model.asked[0]
    assert messages == [system("S"), user("hi")]
    assert (options["temperature"], options["seed"], options["max_tokens"], options["stop"]) == (0.5, 3, 9, ("E",))


def test_reset_forgets_the_turns_and_keeps_the_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"], ["b"])
    halfbyte("chat", stdin="/system Be brief.\none\n/reset\ntwo\n")
    assert [messages for messages, _ in model.asked] == [
        [system("Be brief."), user("one")],
        [system("Be brief."), user("two")],
    ]


def test_quit_leaves_what_follows_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"])
    assert halfbyte("chat", stdin="/quit\nhi\n").exit_code == 0
    assert model.asked == []


def test_a_path_is_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"])
    result = halfbyte("chat", stdin="/nonsense now\n/etc/hosts holds what?\n")
    assert model.asked[0][0] == [user("/etc/hosts holds what?")]
    assert error_lines(result) == ["error: there is no command /nonsense.", "/help lists them."]


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    result = halfbyte("chat", stdin="/help\n")
    assert result.stdout == ""
    for command in ("/system", "/reset", "/save", "/quit", "/help"):
        assert command in result.stderr


def test_save_writes_the_messages_and_never_over_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["grüß"])
    file = tmp_path / "my chat.json"
    result = halfbyte("chat", stdin=f"hi\n/save {file}\n/save {file}\n/save {tmp_path}/no/where\n/save\n")
    assert json.loads(file.read_text(encoding="utf-8")) == [user("hi"), assistant("grüß")]
    errors = [line for line in error_lines(result) if line.startswith("error:")]
    assert len(errors) == 3
    assert "exists and is not overwritten" in errors[0]
    assert "No such file" in errors[1]
    assert "needs the name of a file" in errors[2]


def test_a_full_context_suggests_reset_and_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = ContextFullError("the context of 64 tokens is full.", "Load it with a larger one.")
    model = use_fake(monkeypatch, ["fine"], [full], ["again"])
    file = tmp_path / "chat.json"
    result = halfbyte("chat", stdin=f"one\ntoo long\n/save {file}\n/reset\ntwo\n")
    assert "error: the context of 64 tokens is full." in error_lines(result)
    assert "/reset" in result.stderr
    assert json.loads(file.read_text()) == [user("one"), assistant("fine")]
    assert model.asked[-1][0] == [user("two")]
    assert result.exit_code == 0


def test_an_answer_cut_by_a_full_context_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["so ", "far", ContextFullError("full.")])
    file = tmp_path / "chat.json"
    result = halfbyte("chat", stdin=f"hi\n/save {file}\n")
    assert result.stdout == "so far\n"
    assert json.loads(file.read_text()) == [user("hi"), assistant("so far")]


def test_an_error_in_the_last_turn_of_piped_input_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, [TemplateError("roles must alternate.")])
    result = halfbyte("chat", stdin="hi\n")
    assert result.exit_code == TemplateError.exit_code
    assert error_lines(result) == ["error: roles must alternate."]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["one ", "two", KeyboardInterrupt(), "three"], ["four"])
    result = halfbyte("chat", stdin="count\ngo on\n")
    assert (result.exit_code, result.stdout) == (0, "one two\nfour\n")
    assert model.streams[0].closed
    assert model.asked[1][0] == [user("count"), assistant("one two"), user("go on")]


def test_ctrl_c_before_the_first_word_takes_the_question_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, [KeyboardInterrupt()], ["x"])
    halfbyte("chat", stdin="never mind\nhi\n")
    assert model.asked[1][0] == [user("hi")]


def test_input_that_is_no_text_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"])
    assert halfbyte("chat", stdin=b"caf\xe9\n").exit_code == 0
    assert model.asked[0][0] == [user("caf\ufffd")]


def test_the_history_is_for_its_user_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import readline

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    readline.clear_history()
    with line_editing():
        readline.add_history("a question")
    assert history_path().is_relative_to(tmp_path)
    assert "a question" in history_path().read_text()
    assert history_path().stat().st_mode & 0o777 == 0o600
    readline.clear_history()
    with line_editing():
        assert readline.get_history_item(1) == "a question"


def test_no_place_for_a_history_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("halfbyte.cli.history.history_path", lambda: tmp_path / "file" / "chat_history")
    with line_editing():
        pass
    assert (tmp_path / "file").is_file()
