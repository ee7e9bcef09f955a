"""`halfbyte run --prompts`: many prompts, each with its answer or its error."""

from __future__ import annotations

import json
import os
import select
import threading
from pathlib import Path
from typing import Any

import pytest

from halfbyte.atomic import claimed
from halfbyte.cli.app import app
from halfbyte.errors import ContextFullError, DeviceError
from tests.unit.cli_fakes import error_lines, halfbyte, use_fake


def test_a_file_is_answered_line_by_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = use_fake(monkeypatch, ["one"], ["two"])
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "p1", "id": 4}\n\n{"prompt": "p2", "system": "s", "max_tokens": 3}\n')
    result = halfbyte("run", "--prompts", str(file), "--json", "-n", "8")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["one", "two"]
    assert [(prompt, options["system"], options["max_tokens"]) for prompt, options in model.asked] == [
        ("p1", None, 8),
        ("p2", "s", 3),
    ]


def test_answers_to_a_file_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["one"], ["two"])
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "p1"}\n{"prompt": "p2"}')
    result = halfbyte("run", "--prompts", str(file))
    assert result.stdout == "one\n\ntwo\n"
    assert result.stderr == "> p1\n> p2\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b'{"text": "x"}', 'there is no "prompt"'),
        (b'{"prompt": 3}', 'there is no "prompt"'),
        (b'{"prompt": ""}', "the prompt is empty"),
        (b'{"prompt": "\\ud800"}', "the prompt is not UTF-8"),
        (b'{"prompt": "x", "max_tokens": 0}', '"max_tokens" is 0'),
        (b'{"prompt": "x", "max_tokens": true}', '"max_tokens" is True'),
        (b'{"prompt": "x", "system": 1}', '"system" is 1'),
        (b'{"prompt": "\xff"}', "it is not UTF-8"),
        (b"[" * 100_000, "it is not JSON"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: bytes, complaint: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "fine"}\n\n' + line + b'\n{"prompt": "good"}\n')
    use_fake(monkeypatch, ["one"], ["two"])
    result = halfbyte("run", "--prompts", str(file), "--json")
    first, bad, last = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, first["text"], last["text"]) == (2, "one", "two")
    assert (first["line"], bad["line"], last["line"]) == (1, 3, 4)
    assert bad["error"]["type"] == "UsageError"
    assert f"{file}, line 3: {complaint}" in bad["error"]["message"]
    assert f"error: {file}, line 3: {complaint}" in result.stderr
    use_fake(monkeypatch, ["one"], ["two"])
    result = halfbyte("run", "--prompts", str(file))
    assert (result.exit_code, result.stdout) == (2, "one\n\n\ntwo\n")
    assert f"error: {file}, line 3: {complaint}" in result.stderr


def test_a_file_without_any_request_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = use_fake(monkeypatch)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "x"}\n[1]\n')
    result = halfbyte("run", "--prompts", str(file))
    assert (result.exit_code, model.loads) == (2, [])
    assert f'{file}, line 1: there is no "prompt"' in error_lines(result)[0]


def test_a_prompt_that_fails_is_an_error_of_its_line_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["one"], [ContextFullError("the prompt has 9 tokens.", "Shorten it.")], ["three"])
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1", "id": "a"}\n{"prompt": "2", "id": "b"}\n{"prompt": "3"}\n')
    result = halfbyte("run", "--prompts", str(file), "--json", "--stats")
    lines = list(map(json.loads, result.stdout.splitlines()))
    assert [line.get("text") for line in lines] == ["one", None, "three"]
    assert lines[1] == {
        "line": 2, "prompt": "2", "id": "b",
        "error": {
            "type": "ContextFullError", "message": f"{file}, line 2: the prompt has 9 tokens.", "hint": "Shorten it.",
        },
    }  # fmt: skip
    assert result.exit_code == ContextFullError.exit_code
    assert "tokens_per_s" in result.stderr


def test_a_device_that_fails_ends_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["one"], [DeviceError("the GPU was lost.")], ["never"])
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1"}\n{"prompt": "2"}\n{"prompt": "3"}\n')
    result = halfbyte("run", "--prompts", str(file), "--json")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["one"]
    assert result.exit_code == DeviceError.exit_code
    assert f"error: {file}, line 2: the GPU was lost." in error_lines(result)


def test_lines_may_hold_messages_or_questions_and_keep_their_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = use_fake(monkeypatch, ["one"], ["two"], ["three"])
    messages = [{"role": "user", "content": "hi"}]
    own = [{"role": "system", "content": "own"}, *messages]
    file = tmp_path / "prompts.jsonl"
    lines: list[dict[str, object]] = [
        {"messages": messages, "id": 7},
        {"messages": own},
        {"question": "why?", "id": None},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    result = halfbyte("run", "--prompts", str(file), "--json", "--system", "S")
    given = [{"role": "system", "content": "S"}, *messages]
    assert [prompt for prompt, _ in model.asked] == [given, own, "why?"]
    assert [options["system"] for _, options in model.asked] == [None, None, "S"]
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert (first["line"], first["id"], first["messages"], first["finish_reason"]) == (1, 7, messages, "stop")
    assert "id" not in second
    assert (third["line"], third["id"], third["question"]) == (3, None, "why?")


def test_ctrl_c_keeps_finished_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["one"], ["tw", KeyboardInterrupt()])
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1"}\n{"prompt": "2"}\n')
    result = halfbyte("run", "--prompts", str(file), "--json")
    assert result.exit_code == 130
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["one"]


def write_lines(file: Path, *lines: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_has_settings_of_its_own_and_fields_that_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = use_fake(monkeypatch, ["one"], ["two"])
    own = {"temperature": 0.5, "seed": 3, "stop": ["x"], "raw": True, "logit_bias": {"7": -1.5}, "top_k": 5}
    file = write_lines(
        tmp_path / "p.jsonl",
        {"prompt": "a", **own, "logprobs": 1, "source": {"page": 4}},
        {"prompt": "b", "temperature": None},
    )
    result = halfbyte("run", "--prompts", str(file), "--json", "-t", "0.9", "--min-p", "0.1")
    first, second = (options for _, options in model.asked)
    assert {name: first[name] for name in own} == {**own, "logit_bias": {7: -1.5}}
    assert (first["min_p"], second["min_p"], second["temperature"], second["raw"]) == (0.1, 0.1, 0.9, False)
    one, two = map(json.loads, result.stdout.splitlines())
    assert (one["source"], one["seed"], one["logprobs"][0]["id"]) == ({"page": 4}, 3, 10)
    assert "logprobs" not in two


def test_a_line_may_have_a_schema_of_its_own(tmp_path: Path) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "x", "json_schema": schema})
    result = halfbyte("run", "--threads", "1", "--device", "cpu", "--prompts", str(file), "--json")
    assert len(json.loads(json.loads(result.stdout)["text"])) == 2


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop": 3}, "stop is 3"),
        ({"logit_bias": {"a": 1}}, "'a', which is no token id"),
        ({"max_new_tokens": 5}, '"max_new_tokens" is no setting'),
        ({"json_schema": "x"}, '"json_schema" is no JSON object'),
    ],
)
def test_a_setting_that_is_none_is_an_error_of_its_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: dict[str, Any], complaint: str
) -> None:
    use_fake(monkeypatch, ["fine"])
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "a", **setting}, {"prompt": "b"})
    result = halfbyte("run", "--prompts", str(file), "--json")
    bad, good = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, good["text"]) == (2, "fine")
    assert bad["error"]["message"].startswith(f"{file}, line 1: ")
    assert complaint in bad["error"]["message"]


def test_answers_begin_before_standard_input_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["one"], ["two"])
    (prompts, asking), (answers, printing) = os.pipe(), os.pipe()
    seen: list[str] = []

    def ask_one_after_the_other() -> None:
        with os.fdopen(asking, "w") as pipe, os.fdopen(answers) as out:
            for name in ("1", "2"):
                pipe.write(json.dumps({"prompt": name}) + "\n")
                pipe.flush()
                if not select.select([out], [], [], 30)[0]:
                    return
                seen.append(json.loads(out.readline())["text"])

    asks = threading.Thread(target=ask_one_after_the_other)
    asks.start()
    with os.fdopen(prompts) as stdin, os.fdopen(printing, "w") as stdout:
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            app(["run", "--prompts", "-", "--json"], prog_name="halfbyte")
        asks.join()
    assert (ended.value.code, seen) == (0, ["one", "two"])


def test_standard_input_without_prompts_is_refused() -> None:
    result = halfbyte("run", "--prompts", "-", stdin="\n\n")
    assert (result.exit_code, error_lines(result)[0]) == (2, "error: 'standard input' holds no prompts.")


def test_the_same_command_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", {"prompt": "1", "id": "a"}, {"prompt": ""}, {"prompt": "3"})
    out = tmp_path / "out.jsonl"
    command = ("run", "--prompts", str(file), "--output", str(out))
    use_fake(monkeypatch, ["one"], ["thr", KeyboardInterrupt()])
    assert halfbyte(*command).exit_code == 130
    assert [line.get("text") for line in read_lines(out)] == ["one", None]
    with out.open("a") as half:
        half.write('{"line": 3, "dig')
    model = use_fake(monkeypatch, ["three"])
    result = halfbyte(*command)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{out} has answers to 2 lines already" in result.stderr
    assert [prompt for prompt, _ in model.asked] == ["3"]
    first, second, third = read_lines(out)
    assert (first["id"], first["text"], third["text"]) == ("a", "one", "three")
    assert second["error"]["type"] == "UsageError"
    assert [line["line"] for line in (first, second, third)] == [1, 2, 3]
    done = out.read_bytes()
    model = use_fake(monkeypatch)
    assert (halfbyte(*command).exit_code, model.loads, out.read_bytes()) == (0, [], done)


def test_lines_that_were_added_are_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, out = write_lines(tmp_path / "p.jsonl", {"prompt": "1"}), tmp_path / "out.jsonl"
    use_fake(monkeypatch, ["one"])
    halfbyte("run", "--prompts", str(file), "-o", str(out))
    with file.open("a") as more:
        more.write('{"prompt": "2"}\n')
    model = use_fake(monkeypatch, ["two"])
    assert halfbyte("run", "--prompts", str(file), "-o", str(out), "--threads", "2").exit_code == 0
    assert ([prompt for prompt, _ in model.asked], [line["text"] for line in read_lines(out)]) == (
        ["2"],
        ["one", "two"],
    )


@pytest.mark.parametrize("change", ["settings", "prompts", "fewer", "foreign"])
def test_a_file_with_other_answers_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    file, out = write_lines(tmp_path / "p.jsonl", {"prompt": "1"}, {"prompt": "2"}), tmp_path / "out.jsonl"
    use_fake(monkeypatch, ["one"], ["two"])
    command = ["run", "--prompts", str(file), "-o", str(out)]
    halfbyte(*command)
    match change:
        case "settings":
            command += ["-n", "9"]
        case "prompts":
            write_lines(file, {"prompt": "1"}, {"prompt": "other"})
        case "fewer":
            write_lines(file, {"prompt": "1"})
        case "foreign":
            out.write_text("my notes")
    before = out.read_bytes()
    model = use_fake(monkeypatch, ["new"], ["newer"])
    result = halfbyte(*command)
    assert (result.exit_code, model.loads, out.read_bytes()) == (2, [], before)
    assert "answers to other prompts or with other settings" in error_lines(result)[0]
    assert "--overwrite" in error_lines(result)[1]
    assert halfbyte(*command, "--overwrite").exit_code == 0
    assert read_lines(out)[0]["text"] == "new"


def test_two_commands_do_not_write_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, out = write_lines(tmp_path / "p.jsonl", {"prompt": "1"}), tmp_path / "out.jsonl"
    model = use_fake(monkeypatch, ["one"])
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with claimed(out):
            held.set()
            release.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    result = halfbyte("run", "--prompts", str(file), "-o", str(out))
    release.set()
    other.join()
    assert (result.exit_code, model.asked, out.exists()) == (2, [], False)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["x", "--output", "f"], "--output has no effect without --prompts"),
        (["--prompts", "-", "--overwrite"], "--overwrite has no effect without --output"),
        (["--prompts", "-", "--output", "."], ". is not a file"),
    ],
)
def test_options_that_have_no_effect_are_refused(options: list[str], complaint: str) -> None:
    result = halfbyte("run", *options)
    assert result.exit_code == 2
    assert complaint in error_lines(result)[0]
