"""`halfbyte chat`: turns, commands, and what survives an error or Ctrl-C."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from halfbyte.cli.chat_commands import commands
from halfbyte.errors import ContextFullError, TemplateError, UsageError
from tests.unit.cli_fakes import FakeStream, error_lines, halfbyte, use_fake

finished = FakeStream.result


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


@pytest.mark.parametrize("asked", ["/help", "/?"])
def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    use_fake(monkeypatch)
    result = halfbyte("chat", stdin=f"{asked}\n")
    assert result.stdout == ""
    assert set(re.findall(r"/[\w?]+", result.stderr)) == {f"/{name}" for name in commands()}


@pytest.mark.parametrize("leave", ["/bye", "/exit", "/quit"])
def test_all_ways_to_leave(monkeypatch: pytest.MonkeyPatch, leave: str) -> None:
    model = use_fake(monkeypatch)
    assert halfbyte("chat", stdin=f"{leave}\nhi\n").exit_code == 0
    assert model.asked == []


@pytest.mark.parametrize(("typed", "meant"), [("/sav a.json", "/save"), ("/regen", "/regenerate"), ("/clea", "/clear")])
def test_an_unknown_command_is_answered_with_the_near_one(
    monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    use_fake(monkeypatch)
    result = halfbyte("chat", stdin=f"{typed}\n")
    assert result.exit_code == UsageError.exit_code
    assert error_lines(result)[0].endswith(f"Did you mean {meant}?")


def test_what_stands_in_quotation_marks_is_never_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"])
    halfbyte("chat", stdin='"""/tmp is full"""\n')
    assert model.asked[0][0] == [user("/tmp is full")]


def test_a_saved_conversation_is_taken_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = use_fake(monkeypatch, ["a"], ["b"], ["c"])
    file = tmp_path / "chat.json"
    halfbyte("chat", "--system", "S", stdin=f"one\n/save {file}\n")
    halfbyte("chat", "--system", "another", stdin=f"lost\n/load {file}\ntwo\n")
    assert model.asked[-1][0] == [system("S"), user("one"), assistant("a"), user("two")]


@pytest.mark.parametrize(
    "content",
    ["no JSON", "{}", "[1]", '[{"role": "user"}]', '[{"role": "user", "content": "x"}]',
     '[{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]'],
)  # fmt: skip
def test_a_file_that_is_no_conversation_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    model = use_fake(monkeypatch, ["a"], ["b"])
    file = tmp_path / "chat.json"
    file.write_text(content)
    result = halfbyte("chat", stdin=f"one\n/load {file}\n/load {file}.none\ntwo\n")
    assert f"error: {str(file)!r} is not a conversation." in error_lines(result)
    assert "No such file" in result.stderr
    assert model.asked[-1][0] == [user("one"), assistant("a"), user("two")]


@pytest.mark.parametrize("again", ["/regenerate", "/retry"])
def test_regenerate_replaces_the_last_answer(monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    model = use_fake(monkeypatch, ["a"], ["b"], ["c"])
    halfbyte("chat", stdin=f"one\n{again}\ntwo\n")
    assert model.asked[1][0] == [user("one")]
    assert model.asked[2][0] == [user("one"), assistant("b"), user("two")]


def test_an_answer_stays_when_no_other_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"], [KeyboardInterrupt()], ["c"])
    result = halfbyte("chat", stdin="/retry\none\n/retry\ntwo\n")
    assert "error: there is no answer to replace." in error_lines(result)
    assert model.asked[-1][0] == [user("one"), assistant("a"), user("two")]


def test_a_file_goes_with_the_next_message_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = use_fake(monkeypatch, ["a"], ["b"])
    file = tmp_path / "my notes.md"
    file.write_text("Run:\n```\nls\n```\n")
    halfbyte("chat", stdin=f"/file {file}\nexplain\nthanks\n")
    assert model.asked[0][0] == [user("explain\n\nmy notes.md:\n````\nRun:\n```\nls\n```\n````")]
    assert model.asked[1][0][-1] == user("thanks")


def test_what_is_no_text_file_is_not_attached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = use_fake(monkeypatch, ["a"])
    for name, content in {"bytes": b"\xff\xfe", "zero": b"a\0b", "large": b"x" * ((1 << 20) + 1)}.items():
        (tmp_path / name).write_bytes(content)
    names = ("bytes", "zero", "large", ".", "none", "n" * 300)
    lines = "".join(f"/file {tmp_path / name}\n" for name in names)
    result = halfbyte("chat", stdin=f"{lines}/file ~nobody-has-this-name/x\n/file\nhi\n")
    errors = [line for line in error_lines(result) if line.startswith("error:")]
    reasons = (
        "not UTF-8", "zero bytes", "at most", "is not a file", "No such file", "name too long", "No such file",
        "needs the name",
    )  # fmt: skip
    assert all(reason in line for reason, line in zip(reasons, errors, strict=True))
    assert model.asked[0][0] == [user("hi")]


def test_set_changes_what_the_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["a"])
    lines = ("temperature 0.7", "top_k 40", "seed 3", "samplers temperature, top_k", "max_tokens 9")
    result = halfbyte("chat", stdin="".join(f"/set {line}\n" for line in lines) + "/set\nhi\n")
    options = model.asked[0][1]
    assert {name: options[name] for name in ("temperature", "top_k", "seed", "samplers", "max_tokens")} == {
        "temperature": 0.7, "top_k": 40, "seed": 3, "samplers": ["temperature", "top_k"], "max_tokens": 9,
    }  # fmt: skip
    listed = dict(line.split(maxsplit=1) for line in result.stderr.splitlines() if ":" not in line)
    assert (listed["temperature"], listed["seed"], listed["min_p"], listed["when_full"]) == ("0.7", "3", "0", "stop")


@pytest.mark.parametrize(
    ("line", "asked", "shown"),
    [
        ("stop User:", ("User:",), 'stop: "User:"'),
        ("stop two words", ("two words",), 'stop: "two words"'),
        ("stop 5", ("5",), 'stop: "5"'),
        (r'stop "a b"  "\n" "grüß \"x\""', ("a b", "\n", 'grüß "x"'), r'stop: "a b" "\n" "grüß \"x\""'),
        ('stop "none"', ("none",), 'stop: "none"'),
        ("stop none", (), "stop: none"),
        ("logit_bias 42=-5 7=1.5", {42: -5.0, 7: 1.5}, "logit_bias: 42=-5 7=1.5"),
        ("logit_bias 42=-5, 7=1.5", {42: -5.0, 7: 1.5}, "logit_bias: 42=-5 7=1.5"),
        ("logit_bias none", {}, "logit_bias: none"),
    ],
)
def test_stop_texts_and_biases_are_set_and_shown(
    monkeypatch: pytest.MonkeyPatch, line: str, asked: object, shown: str
) -> None:
    model = use_fake(monkeypatch, ["a"])
    name = line.split()[0]
    result = halfbyte("chat", "--stop", "E", "--logit-bias", "5=1", stdin=f"/set {line}\n/set {name}\nhi\n")
    assert result.stderr.splitlines() == [shown, shown]
    assert model.asked[0][1][name] == asked


def test_stop_texts_and_biases_of_options_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    shown = halfbyte("chat", "--stop", "E", "--stop", "a b", "--logit-bias", "5=1", stdin="/set\n").stderr.splitlines()
    listed = dict(line.split(maxsplit=1) for line in shown)
    assert (listed["stop"], listed["logit_bias"]) == ('"E" "a b"', "5=1")


def test_a_stop_text_that_is_set_ends_the_answer() -> None:
    result = halfbyte("chat", stdin="What does ls do?\n/set stop dir\nWhat does ls do?\n")
    assert result.stdout == "List directory contents.\nList \n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("temperature high", "temperature must be a number between 0 and 100 (got 'high')."),
        ("top_k 0.5", "top_k must be a whole number"),
        ("max_tokens 0", "max_tokens must be a whole number of at least 1 (got '0')."),
        ("when_full never", "when_full must be stop or drop (got 'never')."),
        ("samplers dice", "there is no sampler 'dice'."),
        ("temp 1", "there is no setting 'temp'."),
        ("logit_bias 42", "logit bias '42' is not ID=X."),
        ("logit_bias -1=2", "A token id in logit_bias must be"),
        ('stop ""', "stop is ('',)."),
        ('stop "a', "stop '\"a' has a quotation mark without its other one"),
    ],
)
def test_set_refuses_what_the_library_does(monkeypatch: pytest.MonkeyPatch, line: str, sentence: str) -> None:
    model = use_fake(monkeypatch, ["a"])
    result = halfbyte("chat", stdin=f"/set {line}\nhi\n")
    assert error_lines(result)[0].startswith(f"error: {sentence}")
    assert (model.asked[0][1]["temperature"], model.asked[0][1]["max_tokens"]) == (0.0, 1024)


def test_a_setting_without_effect_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    result = halfbyte("chat", stdin="/set top_p 0.5\n/set temperature 1\n/set top_p 0.6\n")
    assert result.stderr.splitlines() == [
        "top_p: 0.5", "(this has no effect at temperature 0)", "temperature: 1", "top_p: 0.6",
    ]  # fmt: skip


def test_an_answer_without_room_for_its_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["a"])
    monkeypatch.setattr(FakeStream, "result", lambda self: replace(finished(self), finish_reason="length"))
    assert "/set max_tokens" in halfbyte("chat", stdin="hi\n").stderr


def test_another_model_goes_on_with_the_conversation(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    result = halfbyte(
        "chat", "-v", stdin=f"What does ls do?\n/model ./none\n/model pocket\n/model\nAnd pwd?\n/save {file}\n"
    )
    assert result.exit_code == 0
    assert "error: ./none does not exist." in error_lines(result)
    assert "loaded in" in result.stderr
    assert result.stderr.count("pocket on cpu") == 2
    assert [message["role"] for message in json.loads(file.read_text())] == ["user", "assistant"] * 2


def test_the_model_before_goes_on_where_another_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    result = halfbyte("chat", stdin=f"/model {tmp_path}\nWhat does ls do?\n")
    assert (result.exit_code, result.stdout) == (0, "List directory contents.\n")
    assert "error:" in result.stderr


def test_figures_of_answers_and_of_the_context() -> None:
    result = halfbyte("chat", "--context", "256", stdin="/stats\nWhat does ls do?\n/stats\n/reset\n/stats\n")
    shown = [line.split(maxsplit=1) for line in result.stderr.splitlines() if not line.startswith("(")]
    assert [label for label, _ in shown] == ["context", "answer", "speed", "first", "context", "context"]
    assert [value for label, value in shown if label == "context"][::2] == ["0 of 256 tokens used, 256 free"] * 2
    used = int(shown[4][1].split()[0])
    assert shown[4][1] == f"{used} of 256 tokens used, {256 - used} free"
    assert used > 5


def test_stats_follow_each_answer() -> None:
    result = halfbyte("chat", "--stats", stdin="What does ls do?\n/set\nWhat does pwd do?\n")
    assert result.stderr.count("tokens/s") == 2


FILLED = "What does ls do?\n" * 3


def test_a_full_context_stops_unless_asked_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    result = halfbyte("chat", "--context", "64", stdin=f"{FILLED * 3}/save {file}\n")
    assert "/set when_full drop" in result.stderr
    assert json.loads(file.read_text())[0] == user("What does ls do?")


@pytest.mark.parametrize(("options", "first"), [(["--when-full", "drop"], ""), ([], "/set when_full drop\n")])
def test_a_full_context_may_drop_the_oldest_turns(tmp_path: Path, options: list[str], first: str) -> None:
    file = tmp_path / "chat.json"
    lines = f"{first}What does cd do?\n{FILLED * 2}/save {file}\n"
    result = halfbyte("chat", "--context", "64", "--system", "Be brief.", *options, stdin=lines)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 7
    assert "(the context is full: forgot the oldest 1 of " in result.stderr
    messages = json.loads(file.read_text())
    assert messages[0] == system("Be brief.")
    assert [message["role"] for message in messages[1:]] == ["user", "assistant"] * (len(messages) // 2)
    assert user("What does cd do?") not in messages


def test_a_message_larger_than_the_context_says_what_to_do() -> None:
    result = halfbyte("chat", "--context", "32", "--when-full", "drop", stdin="ls " * 100 + "\n")
    assert result.exit_code == ContextFullError.exit_code
    assert error_lines(result)[1] == "Write a shorter message, or start with a larger --context."


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
