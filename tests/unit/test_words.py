"""Which of a command's words is the model, and which the prompt; and what is asked or refused where neither is sure."""

from __future__ import annotations

from pathlib import Path

import pytest

from halfbyte.checkpoint import hub
from halfbyte.cli.words import looks_like_model
from halfbyte.errors import ModelNotFoundError, UsageError
from halfbyte.model import POCKET, load, locate
from halfbyte.models.catalog import CATALOG, HUB_IDS, resembling
from tests.unit.cli_fakes import error_lines, halfbyte, use_fake


@pytest.mark.parametrize(
    ("words", "stdin", "model", "asked"),
    [
        (["hi there"], "", None, "hi there"),
        (["phi-4-mini", "hi"], "", "phi-4-mini", "hi"),
        (["org/name", "hi"], "", "org/name", "hi"),
        (["org/name:Q4_K_M", "phi-4"], "", "org/name:Q4_K_M", "phi-4"),
        (["./missing", "hi"], "", "./missing", "hi"),
        (["no.gguf", "hi"], "", "no.gguf", "hi"),
        (["pocket", "hi"], "", "pocket", "hi"),
        (["-m", "pocket", "phi-4"], "", "pocket", "phi-4"),
        (["phi-4"], "a text\n", "phi-4", "a text"),
        (["explain:"], "a text\n", None, "explain:\n\na text"),
        (["phi-4", "explain:"], "a text\n", "phi-4", "explain:\n\na text"),
        (["phi-4", "-"], "a text\n", "phi-4", "a text"),
        ([], "a text\n", None, "a text"),
        (["-p", "hi"], "", None, "hi"),
        (["-p", "phi-4"], "", None, "phi-4"),
        (["phi-4", "--prompt", "hi"], "", "phi-4", "hi"),
        (["-m", "phi-4", "-p", "hi"], "", "phi-4", "hi"),
        (["-f", "FILE"], "unread", None, "of a file"),
        (["explain:", "-f", "FILE"], "unread", None, "explain:\n\nof a file"),
        (["phi-4", "-f", "FILE"], "unread", "phi-4", "of a file"),
        (["phi-4", "explain:", "--file", "FILE"], "", "phi-4", "explain:\n\nof a file"),
        (["explain:", "-f", "-"], "a text\n", None, "explain:\n\na text"),
        (["localhost is down: why?"], "", None, "localhost is down: why?"),
    ],
)
def test_model_and_prompt_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], stdin: str, model: str | None, asked: str
) -> None:
    fake = use_fake(monkeypatch, ["x"])
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfof a file\n")
    result = halfbyte("run", *(word.replace("FILE", str(file)) for word in words), stdin=stdin)
    assert result.exit_code == 0, result.stderr
    assert [name for name, _, _ in fake.loads] == [model]
    assert [prompt for prompt, _ in fake.asked] == [asked]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["run", "How", "do"], "'How' is not a model", 'halfbyte run "How do"'),
        (["run", "How", "do", "I"], "'do I' follows 'How'", 'halfbyte run "How do I"'),
        (["run", "phi-4", "How", "do"], "'do' follows 'How'", 'halfbyte run phi-4 "How do"'),
        (["run", "-m", "phi-4", "How", "do"], "'do' follows 'How'", 'halfbyte run -m phi-4 "How do"'),
        (["run", "-m", "phi-4", "org/name", "hi"], "twice: 'phi-4' with --model, and 'org/name'", "Leave out one"),
        (["run", "How", "-p", "hi"], "'How' is not a model", "quotation marks"),
        (["run", "-", "-f", "x"], "both - and --file", "one of the two"),
        (["run", "-f", "none.txt"], "cannot read 'none.txt'", "after --file"),
        (["run", "--prompts", "x", "-f", "y"], "both --file and --prompts", "one of the two"),
        (["profile", "phi-4"], "there is no prompt", 'halfbyte profile phi-4 "PROMPT"'),
        (["profile"], "there is no prompt", "halfbyte profile"),
        *(([*command, "-m", "a", "b"], "named twice: 'a' with --model, and 'b'", "Leave out one") for command in (
            ["chat"], ["plan"], ["tune"], ["bench", "throughput"], ["eval", "perplexity", "--text", "t"],
        )),
        (["bench", "-m", "a", "org/b"], "named twice: 'a' with --model, and 'org/b'", "Leave out one"),
        (["bench", "org/a", "-r", "2", "org/b"], "named twice: 'org/a'", "Leave out one"),
        (["bench", "compair", "a", "b"], "Did you mean 'compare'", "halfbyte bench --help"),
        (["plan", "a", "b"], "halfbyte plan does not take 'b'", "--help"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_meant_are_refused(
    monkeypatch: pytest.MonkeyPatch, words: list[str], message: str, hint: str
) -> None:
    fake = use_fake(monkeypatch)
    result = halfbyte(*words)
    assert (result.exit_code, fake.loads) == (2, [])
    assert message in error_lines(result)[0]
    assert hint in error_lines(result)[1]


ALONE = (
    "org/model", "hf.co/org/name", "org/name:Q4_K_M", "org/name@main", "x.gguf", "FOLDER", "FILE", "pocket",
    "phi-4-mini", "llama3.2:1b", "phi4", "deepseek-r1:7b",
)  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_a_model_alone_is_never_answered_silently(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell_29m: Path, name: str
) -> None:
    fake = use_fake(monkeypatch, ["x"])
    (tmp_path / "blob").write_bytes(b"GGUF" + bytes(20))
    name = name.replace("FOLDER", str(shell_29m)).replace("FILE", str(tmp_path / "blob"))
    result = halfbyte("run", name)
    message, hint = error_lines(result)
    assert result.exit_code == 2
    assert message == f"error: {name!r} looks like a model, and there is no prompt."
    for way in (f'halfbyte run {name} "PROMPT"', f"halfbyte chat {name}", f"halfbyte run -m pocket {name}"):
        assert way in hint
    assert fake.loads == []
    assert halfbyte("run", name, "-m", "pocket").exit_code == 0


@pytest.mark.parametrize(
    "word", ["hi", "phi", "How?", "http://localhost:8080/x", "a: b", "12:30", "/etc/hosts", "", "…"]
)
def test_words_of_prompts_do_not_look_like_models(word: str) -> None:
    assert not looks_like_model(word)


def test_on_a_terminal_a_model_alone_may_begin_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use_fake(monkeypatch, ["hello"])
    monkeypatch.setattr("halfbyte.cli.run.can_ask", lambda: True)
    result = halfbyte("run", "org/name", "--temp", "0.5", "--threads", "2", stdin="y\nhi\n")
    assert result.exit_code == 0, result.stderr
    assert "'org/name' looks like a model. Chat with it?" in result.stderr
    assert [(name, options.threads) for name, options, _ in fake.loads] == [("org/name", 2)]
    prompt, options = fake.asked[0]
    assert prompt == [{"role": "user", "content": "hi"}]
    assert (options["temperature"], options["max_tokens"]) == (0.5, 1024)


def test_on_a_terminal_it_may_also_be_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use_fake(monkeypatch, ["yes"])
    monkeypatch.setattr("halfbyte.cli.run.can_ask", lambda: True)
    assert halfbyte("run", "and/or", stdin="n\n").exit_code == 0
    assert [name for name, _, _ in fake.loads] == [None]
    assert fake.asked[0][0] == "and/or"


def test_options_that_no_chat_has_are_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use_fake(monkeypatch)
    monkeypatch.setattr("halfbyte.cli.run.can_ask", lambda: True)
    result = halfbyte("run", "org/name", "--json", stdin="y\n")
    assert (result.exit_code, fake.loads) == (2, [])
    assert error_lines(result)[0] == "error: 'org/name' looks like a model, and there is no prompt."


def test_a_file_in_the_place_of_the_prompt_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_fake(monkeypatch, ["x"])
    file = tmp_path / "prompt.txt"
    file.write_text("hello")
    result = halfbyte("run", str(file))
    assert result.exit_code == 0
    assert f"halfbyte run -f {file}" in result.stderr


@pytest.mark.parametrize("command", [["plan"], ["models", "show"], ["bench", "-p", "8", "-n", "1", "-r", "1"]])
def test_other_commands_take_the_model_as_an_argument_too(command: list[str]) -> None:
    result = halfbyte(*command, "no/such/folder")
    assert result.exit_code == ModelNotFoundError.exit_code
    assert "no/such/folder" in error_lines(result)[0]


def test_every_model_of_the_catalog_has_a_place_on_the_hub() -> None:
    assert HUB_IDS.keys() == CATALOG.keys()
    assert len(set(HUB_IDS.values())) == len(HUB_IDS)


@pytest.mark.parametrize("name", HUB_IDS)
def test_a_short_name_is_its_id_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = []
    monkeypatch.setattr("halfbyte.checkpoint.hub._download", lambda *what: asked.append(what[:3]) or Path())
    hub.pull(name)
    hub.pull(f"{name}@v1")
    hub.pull(f"https://huggingface.co/{HUB_IDS[name]}")
    assert asked == [(HUB_IDS[name], None, revision) for revision in ("main", "v1", "main")]


def test_a_short_name_has_no_tags() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no variant 'q4'.*weights='q4g32'.*org/name-GGUF:Q4_K_M"):
        load("phi-4-mini:q4", offline=True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama3.2:1b", ["llama-3.2-1b"]),
        ("llama3.2", ["llama-3.2-1b", "llama-3.2-3b"]),
        ("phi4-mini:latest", ["phi-4-mini"]),
        ("phi4", ["phi-4"]),
        ("qwen2.5:0.5b", ["qwen-2.5-0.5b"]),
        ("Mistral", ["mistral-7b-v0.3"]),
        ("deepseek-r1", []),
        ("phi", []),
    ],
)
def test_names_of_other_programs_are_recognized(name: str, meant: list[str]) -> None:
    assert resembling(name) == meant
    with pytest.raises(ModelNotFoundError, match="neither a folder, a Hugging Face id nor a short name") as refused:
        load(name, offline=True)
    assert all(each in refused.value.hint for each in meant)


def test_a_folder_does_not_take_the_place_of_a_short_name_unasked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("pocket", None, True) == POCKET
    for name in ("pocket", "phi-4-mini"):
        (tmp_path / name).mkdir()
        with pytest.raises(UsageError, match=rf"'{name}' is a short name, and a folder here\. Write './{name}'"):
            locate(name, None, True)
        assert locate(f"./{name}", None, True) == Path(name)
        assert locate(Path(name), None, True) == Path(name)
