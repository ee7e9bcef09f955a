"""Defaults of the user: the configuration file and variables, how they are shown and set, and to what they give way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from halfbyte.cli.app import app
from halfbyte.cli.settings import SETTABLE, config_path, key
from halfbyte.errors import UsageError
from halfbyte.options import RunOptions
from tests.unit.cli_fakes import FakeModel, error_lines, halfbyte, use_fake

Write = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file, which is not there yet."""
    monkeypatch.delenv("HALFBYTE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # put back afterwards
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "halfbyte" / "config.toml"


@pytest.fixture
def write(file: Path) -> Write:
    def written(text: str) -> Path:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return file

    return written


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    return use_fake(monkeypatch, ["yes"], ["yes"], ["yes"], ["yes"])


def loaded(model: FakeModel) -> tuple[Any, RunOptions]:
    """The model that was loaded last, and how."""
    name, options, _ = model.loads[-1]
    return name, options


def in_force() -> dict[str, tuple[Any, str]]:
    """What `halfbyte config --json` says."""
    result = halfbyte("config", "--json")
    return {each["key"]: (each["value"], each["source"]) for each in json.loads(result.stdout)}


def test_an_option_comes_before_a_variable_and_that_before_the_file(
    write: Write, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('model = "from-file"\ncontext = 64\ntemperature = 0.5\n')
    halfbyte("run", "x")
    assert (loaded(model)[0], loaded(model)[1].context, model.asked[-1][1]["temperature"]) == ("from-file", 64, 0.5)
    monkeypatch.setenv("HALFBYTE_MODEL", "from-variable")
    monkeypatch.setenv("HALFBYTE_CONTEXT", "128")
    halfbyte("run", "x")
    assert (loaded(model)[0], loaded(model)[1].context) == ("from-variable", 128)
    halfbyte("run", "x", "-m", "typed", "--context", "256", "--temperature", "0.1")
    assert (loaded(model)[0], loaded(model)[1].context, model.asked[-1][1]["temperature"]) == ("typed", 256, 0.1)


def test_a_table_is_for_one_command(write: Write, model: FakeModel) -> None:
    write("max_tokens = 7\n[chat]\nmax-tokens = 9\n")
    halfbyte("run", "x")
    assert model.asked[-1][1]["max_tokens"] == 7
    halfbyte("chat", stdin="x\n")
    assert model.asked[-1][1]["max_tokens"] == 9


@pytest.mark.parametrize(
    ("text", "typed", "expected"),
    [
        ('device = "gpu"', ["--threads", "1"], RunOptions(threads=1)),
        ('device = "cpu"', ["--gpu", "1"], RunOptions(gpu=1)),
        ("gpu = 1", ["--device", "cpu"], RunOptions(device="cpu")),
        ("gpu = 1", ["--threads", "1"], RunOptions(threads=1)),
        ("gpu = 1", ["--device", "gpu"], RunOptions(device="gpu", gpu=1)),
        ("cache-tokens = 64", ["--context", "128"], RunOptions(context=128)),
        ('kv-cache = "q8"', [], RunOptions(kv_dtype="q8")),
    ],
)
def test_a_default_gives_way_to_an_option_that_contradicts_it(
    write: Write, model: FakeModel, text: str, typed: list[str], expected: RunOptions
) -> None:
    write(text)
    result = halfbyte("run", "x", *typed)
    assert result.exit_code == 0, result.stderr
    assert loaded(model)[1] == expected


def test_what_has_no_effect_is_dropped_as_a_default_and_refused_as_an_option(write: Write, model: FakeModel) -> None:
    write("temperature = 0.7\ntop-k = 40\nseed = 1\nsystem = 'Be brief.'\n")
    assert halfbyte("run", "x").exit_code == 0
    assert (model.asked[-1][1]["top_k"], model.asked[-1][1]["seed"]) == (40, 1)
    assert halfbyte("run", "x", "--temperature", "0", "--raw").exit_code == 0
    options = model.asked[-1][1]
    assert (options["top_k"], options["seed"], options["system"]) == (0, None, None)
    assert halfbyte("run", "x", "--temperature", "0", "--min-p", "0.1").exit_code == UsageError.exit_code


def test_threads_by_default_do_not_choose_the_cpu(
    write: Write, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("threads = 1")
    halfbyte("run", "x")
    assert loaded(model)[1] == RunOptions()
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_measurements_take_the_place_to_run_but_nothing_that_changes_the_figures(write: Write) -> None:
    write('model = "nobody/nothing"\ncontext = 8\n[plan]\noffline = true\n')
    result = halfbyte("plan")
    assert "nobody/nothing at main is not in the local cache" in error_lines(result)[0]
    assert json.loads(halfbyte("plan", "-m", "pocket", "--json").stdout)["context"] == 2048


def test_the_server_serves_the_default_model(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("halfbyte.cli.serve._serve_alone", lambda sources, settings, idle: served.append(settings))
    monkeypatch.setattr("halfbyte.cli.serve._sources", lambda models, chosen, run: served.append(list(models)))
    write('model = "by/default"\n[serve]\nport = 8123\n')
    halfbyte("serve")
    assert (served[0], served[1].port) == (["by/default"], 8123)
    halfbyte("serve", "other")
    assert served[2] == ["other"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature = 1", ("{file}: there is no setting 'temprature'.", "Did you mean temperature?")),
        ("[chat]\ntemprature = 1", ("{file}: there is no setting of chat 'temprature'.", "Did you mean temperature?")),
        ("[serve]\ntemperature = 1", ("{file}: there is no setting of serve 'temperature'.", "Known are model")),
        ("[chta]\nmodel = 'x'", ("{file}: there is no command with settings called 'chta'.", "Did you mean chat?")),
        ("context = 'many'", ("context in {file} must be a whole number (got many).", "See")),
        ("device = 'cuda'", ("device in {file} must be auto, cpu, gpu or reference (got cuda). Did you mean gpu?", "")),
        ("model = \n", ("{file} is not valid TOML: Invalid value (at line 1, column 9).", "Correct it there.")),
    ],
)
def test_a_mistake_in_the_file_is_named(write: Write, model: FakeModel, text: str, words: tuple[str, str]) -> None:
    file = write(text)
    result = halfbyte("run", "x")
    assert result.exit_code == UsageError.exit_code
    message, hint = error_lines(result)
    assert message == "error: " + words[0].format(file=file)
    assert hint.startswith(words[1])
    assert model.loads == []


def test_an_error_says_who_set_the_value(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("context = 4096\ntemperature = 1\ntop-p = 2\n")
    assert error_lines(halfbyte("run", "x"))[1].endswith(f" top-p is set by {file}.")
    message, hint = error_lines(halfbyte("run", "x", "--top-p", "1"))
    assert "context 4096" in message
    assert hint.endswith(f" context is set by {file}.")
    assert "is set by" not in error_lines(halfbyte("run", "x", "--top-p", "1", "--context", "5000"))[1]
    monkeypatch.setenv("HALFBYTE_MODEL", "./nowhere")
    assert error_lines(halfbyte("run", "x", "--top-p", "1"))[1].endswith(" model is set by HALFBYTE_MODEL.")


def test_a_mistake_in_a_variable_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CONTEXT", "0")
    assert error_lines(halfbyte("run", "x"))[0] == "error: HALFBYTE_CONTEXT must be at least 1 (got 0)."


def test_a_file_that_was_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFBYTE_CONFIG", str(tmp_path / "none.toml"))
    result = halfbyte("run", "x")
    assert result.exit_code == UsageError.exit_code
    assert "none.toml does not exist; HALFBYTE_CONFIG names it" in error_lines(result)[0]
    assert halfbyte("config", "set", "model", "pocket").exit_code == 0
    assert (tmp_path / "none.toml").is_file()


def test_help_is_shown_whatever_the_file_says(write: Write) -> None:
    without = halfbyte("run", "-h").stdout
    write("max-tokens = 77\n")
    assert halfbyte("run", "-h").stdout == without
    write("nonsense")
    assert halfbyte("run", "--help").stdout == without


def test_config_shows_every_value_and_where_it_is_from(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(write("temperature = 0.5\n[chat]\ntemperature = 1\n[bench]\ndevice = 'cpu'\n"))
    monkeypatch.setenv("HALFBYTE_KV_CACHE", "q8")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = in_force()
    assert found["kv-cache"] == ("q8", "HALFBYTE_KV_CACHE")
    assert found["threads"] == (3, "OMP_NUM_THREADS")
    assert (found["run.temperature"], found["chat.temperature"]) == ((0.5, file), (1.0, file))
    assert found["bench.device"] == ("cpu", file)
    assert found["model"] == (None, "built in")
    assert (found["run.max-tokens"], found["chat.max-tokens"]) == ((256, "built in"), (1024, "built in"))
    rows = [line.split() for line in halfbyte("config").stdout.splitlines()]
    assert rows[0] == ["KEY", "FROM", "VALUE"]
    assert ["model", "built", "in", "the", "pocket", "model"] in rows
    assert ["kv-cache", "HALFBYTE_KV_CACHE", "q8"] in rows


def test_set_and_unset_keep_the_rest_of_the_file(write: Write) -> None:
    file = write("# mine\nmax_tokens = 5 # few\n\n[chat] # talk\ntop-k = 4\n")
    assert halfbyte("config", "set", "max-tokens", "6").exit_code == 0
    assert halfbyte("config", "set", "temperature", "0.5").exit_code == 0
    assert halfbyte("config", "set", "serve.log_prompts", "true").exit_code == 0
    assert halfbyte("config", "unset", "chat.top-k").exit_code == 0
    assert file.read_text() == (
        "# mine\nmax_tokens = 6 # few\ntemperature = 0.5\n\n[chat] # talk\n\n[serve]\nlog-prompts = true\n"
    )
    assert in_force()["log-prompts"] == (True, str(file))


def test_set_makes_the_file(file: Path) -> None:
    assert halfbyte("config", "path").stdout == f"{file}\n"
    assert halfbyte("config", "set", "model", "phi-4-mini").exit_code == 0
    assert file.read_text() == 'model = "phi-4-mini"\n'


def test_a_server_may_have_a_model_of_its_own(file: Path) -> None:
    assert halfbyte("config", "set", "serve.model", "phi-4").exit_code == 0
    assert file.read_text() == '[serve]\nmodel = "phi-4"\n'
    assert in_force()["serve.model"] == ("phi-4", str(file))


def test_only_a_table_is_for_one_command(write: Write) -> None:
    file = write("chat = 5\n")
    assert error_lines(halfbyte("config", "set", "chat.top-k", "4"))[0] == f"error: {file}: chat is not a table."


def test_set_writes_through_a_link(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    file.symlink_to(tmp_path / "dotfiles.toml")
    (tmp_path / "dotfiles.toml").write_text("")
    halfbyte("config", "set", "threads", "2")
    assert (file.is_symlink(), file.read_text()) == (True, "threads = 2\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "modle", "x"], "there is no setting 'modle'."),
        (["set", "chat.modle", "x"], "there is no setting of chat 'modle'."),
        (["set", "caht.model", "x"], "there is no command with settings called 'caht'."),
        (["set", "context", "many"], "--context must be a whole number (got many)."),
        (["set", "eval.device", "tpu"], "--device must be auto, cpu, gpu or reference (got tpu)."),
        (["unset", "model"], "does not set model."),
    ],
)
def test_what_cannot_be_set_is_refused(file: Path, arguments: list[str], words: str) -> None:
    result = halfbyte("config", *arguments)
    assert result.exit_code == UsageError.exit_code
    assert words in error_lines(result)[0]
    assert not file.exists()


def test_every_setting_is_an_option_of_its_commands() -> None:
    root: Any = typer.main.get_command(app)
    for command, names in SETTABLE.items():
        found = root.commands[command]
        leaves = [found] if found.params else list(found.commands.values())
        options: dict[str, list[str]] = {param.name: param.opts for leaf in leaves for param in leaf.params}
        for name in names:
            if (command, name) != ("serve", "model"):  # there it is an argument
                assert f"--{key(name)}" in options.get(name, ()), (command, name)


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CONFIG_HOME": "/x"}, "/x/halfbyte/config.toml"),
        ("linux", {}, "/home/me/.config/halfbyte/config.toml"),
        ("darwin", {"XDG_CONFIG_HOME": "/x"}, "/home/me/Library/Application Support/halfbyte/config.toml"),
        ("win32", {"APPDATA": "/a"}, "/a/halfbyte/config.toml"),
        ("linux", {"HALFBYTE_CONFIG": "~/mine.toml"}, "/home/me/mine.toml"),
    ],
)
def test_the_file_is_where_the_system_keeps_such(
    file: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert config_path() == Path(expected)
