"""Whatever goes wrong: one line that says what, one that says what to do, a code, no traceback unless asked for."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte import errors
from halfbyte.cli.exit_codes import MEANINGS
from tests.unit.cli_fakes import error_lines, halfbyte, use_fake

KINDS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.HalfbyteError) and value is not errors.HalfbyteError
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_two_lines_and_its_code(
    monkeypatch: pytest.MonkeyPatch, kind: type[errors.HalfbyteError]
) -> None:
    use_fake(monkeypatch, [kind("it is\nwrong: \x1b[31m7.", "Do this.")])
    result = halfbyte("run", "x")
    assert result.exit_code == kind.exit_code
    assert error_lines(result) == ["error: it is wrong: \\x1b[31m7.", "Do this."]


def test_exit_codes_tell_errors_apart() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, 70, 71, 74, 130} & set(codes)


def test_an_error_in_the_middle_keeps_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["so far", errors.ContextFullError("the context of 64 tokens is full.")])
    result = halfbyte("run", "x")
    assert result.stdout == "so far\n"
    assert error_lines(result) == ["error: the context of 64 tokens is full."]
    assert result.exit_code == errors.ContextFullError.exit_code


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 71, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 74, "the disk is full (/tmp/x)"),
        (PermissionError(errno.EACCES, "Permission denied", "/tmp/y"), 74, "Permission denied (/tmp/y)"),
        (ValueError("odd"), 70, "this is a bug in Halfbyte: ValueError: odd"),
    ],
)
def test_other_failures_are_sentences_too(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    use_fake(monkeypatch, [error])
    result = halfbyte("run", "x")
    assert result.exit_code == code
    message, hint = error_lines(result)
    assert words in message
    assert hint


@pytest.mark.parametrize("arguments", [["--debug", "run", "x"], ["run", "--debug", "x"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    use_fake(monkeypatch, [ValueError("odd")])
    result = halfbyte(*arguments)
    assert result.exit_code == 70
    assert "Traceback (most recent call last)" in result.stderr
    assert "error: this is a bug" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", ""], "the prompt is empty"),
        (["run"], "the prompt is empty"),
        (["run", "\udcff"], "the prompt is not UTF-8"),
        (["run", "x", "--prompts", "f"], "both a prompt and --prompts"),
        (["run", "--prompts", "missing.jsonl"], "'missing.jsonl': No such file"),
        (["run", "x", "--raw", "--system", "s"], "without a chat template"),
        (["run", "x", "--logprobs", "3"], "without --json"),
        (["run", "x", "--top-k", "40"], "--top-k 40 has no effect at temperature 0"),
        (["run", "x", "--top-p", "0.9"], "--top-p 0.9 has no effect"),
        (["run", "x", "--min-p", "0.1"], "--min-p 0.1 has no effect"),
        (["run", "x", "--seed", "7"], "--seed 7 has no effect at temperature 0"),
        (["run", "x", "--tempo", "0.7"], "no option --tempo. Did you mean --temperature or"),
        (["run", "x", "--max_tokens", "7"], "Did you mean --max-tokens?"),
        (["run", "x", "--contxt", "7"], "Did you mean --context?"),
        (
            ["run", "x", "--device", "cuda"],
            "must be auto, cpu, gpu or reference (got cuda). Did you mean gpu?",
        ),
        (["run", "x", "--device", "CPU"], "Did you mean cpu?"),
        (["run", "x", "--threads", "0"], "--threads must be at least 1 (got 0)."),
        (["run", "x", "--gpu", "-1"], "--gpu must be at least 0 (got -1)."),
        (["run", "x", "--threads", "many"], "--threads must be a whole number (got many)."),
        (["run", "x", "-t", "hot"], "--temperature must be a number (got hot)."),
        (["run", "How", "do", "I"], "the prompt is more than one argument: 'do I' follows 'How'"),
        (["doctor", "now"], "halfbyte doctor does not take 'now'"),
        (["export", "a", "b", "--to", "gptw"], "--to must be gguf, awq, gptq or gptq_v2 (got gptw). Did you mean gptq"),
        (["eval", "perplexity", "--text", "t", "--stride", "5"], "--stride has no effect with --protocol windows"),
        (["tune", "--short", "--seconds", "9"], "--seconds has no effect with --short"),
        (["tune", "--device", "cpu", "--gpu", "0"], "--gpu cannot be combined with --device cpu"),
        (["tune", "--show", "--batch-tokens", "9"], "--batch-tokens has no effect with --show"),
        (["profile", "x", "--overwrite"], "--overwrite has no effect without --html or --trace"),
        (["eval", "table", "--text", "t", "--calibration", "c", "--overwrite"], "--overwrite has no effect without"),
        (["quantize", "a", "b", "--bits", "8", "--zero-points"], "--zero-points has no effect in 8 bits"),
        (["quantize", "a", "b", "--calibration-tokens", "512"], "has no effect without --calibration"),
        (["bench", "--json", "compare", "a", "b"], "--json has no effect before 'compare'"),
        (["bench", "--weights", "f16", "--variants", "formats"], "--weights has no effect with --variants formats"),
        (["chat", "--typical-p", "0.5"], "--typical-p 0.5 has no effect"),
        (["run", "x", "--top-n-sigma", "1"], "--top-n-sigma 1.0 has no effect at temperature 0"),
        (["run", "x", "--xtc-probability", "1"], "--xtc-probability 1.0 has no effect at temperature 0"),
        (["run", "x", "--mirostat", "2"], "--mirostat 2 has no effect at temperature 0"),
        (["run", "x", "--dynatemp-range", "1"], "--dynatemp-range 1.0 has no effect at temperature 0"),
        (["run", "x", "-t", "1", "--xtc-threshold", "0.3"], "--xtc-threshold 0.3 has no effect without --xtc-prob"),
        (["run", "x", "-t", "1", "--mirostat-tau", "3"], "--mirostat-tau 3.0 has no effect without --mirostat"),
        (["chat", "-t", "1", "--dynatemp-exponent", "2"], "has no effect without --dynatemp-range"),
        (["run", "x", "--repeat-last-n", "64"], "--repeat-last-n 64 has no effect without --repetition-penalty"),
        (["run", "x", "--dry-base", "2"], "--dry-base 2.0 has no effect without --dry-multiplier"),
        (["run", "x", "--dry-sequence-breaker", "a"], "--dry-sequence-breaker a has no effect without --dry-mult"),
        (["run", "x", "-t", "1", "--mirostat", "1"], "mirostat 1 is not available"),
        (["run", "x", "-t", "1", "--samplers", "top_q,temperature"], "there is no sampler 'top_q'"),
        (["run", "x", "-t", "1", "--top-k", "5", "--samplers", "top_p"], "samplers (top_p) does not name top_k"),
        (["run", "x", "--dry-multiplier", "1", "--dry-sequence-breaker", ""], "dry_sequence_breakers is ['']"),
        (["run", "x", "-t", "nan"], "(got nan)"),
        (["run", "x", "-t", "1", "--top-p", "1.5"], "top_p must be a number between 0 and 1 (got 1.5)"),
        (["run", "x", "--logit-bias", "a=1"], "'a=1' is not ID=X"),
        (["run", "x", "--logit-bias", "7"], "'7' is not ID=X"),
        (["run", "x", "--seed", "-1"], "(got -1)"),
        (["run", "x", "--max-tokens", "0"], "--max-tokens"),
        (["run", "x", "--device", "tpu"], "--device"),
        (["run", "x", "--bogus"], "--bogus"),
        (["chat", "--threads", "many"], "--threads"),
        (["ruin"], "Did you mean 'run'"),
        (["models", "fetch"], "fetch"),
        (["models", "pull"], "ID"),
        (["models", "remove", "org/name@main"], "org/name can only be removed in every revision"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    model = use_fake(monkeypatch)
    result = halfbyte(*arguments)
    assert result.exit_code == 2
    assert words in error_lines(result)[0]
    assert error_lines(result)[0].startswith("error: ")
    assert len(error_lines(result)) <= 2
    assert (result.stdout, model.loads) == ("", [])


def test_standard_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch)
    result = halfbyte("run", "-", stdin=b"abc\xff")
    assert result.exit_code == 2
    assert "standard input is not UTF-8 text: invalid start byte at byte 3." in error_lines(result)[0]


@pytest.mark.parametrize("command", [["run", "x", "-m"], ["plan", "-m"], ["models", "show"], ["chat", "-m"]])
def test_a_missing_folder_is_named(command: list[str], tmp_path: Path) -> None:
    result = halfbyte(*command, str(tmp_path / "nowhere"))
    assert result.exit_code == errors.ModelNotFoundError.exit_code
    assert str(tmp_path / "nowhere") in error_lines(result)[0]


def test_nothing_is_asked_about_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    result = halfbyte("models", "remove", "org/name", stdin="y\n")
    assert result.exit_code == errors.ModelNotFoundError.exit_code
    assert error_lines(result)[0] == "error: org/name is not in the local cache."


@pytest.mark.parametrize(("data", "reason"), [(None, "No such file or directory"), (b"\xff", "it is not UTF-8 text")])
def test_a_text_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None, reason: str) -> None:
    text = tmp_path / "text.txt"
    if data is not None:
        text.write_bytes(data)
    for arguments in (
        ("eval", "perplexity", "--text", str(text)),
        ("eval", "answers", "--questions", str(text)),
        ("bench", "compare", str(text), str(text)),
    ):
        result = halfbyte(*arguments)
        assert result.exit_code == 2
        assert error_lines(result)[0] == f"error: cannot read {str(text)!r}: {reason}."


def test_nothing_of_the_validator_reaches_the_user() -> None:
    for arguments in (["run", "x", "--device", "x"], ["bench", "-r", "x"], ["quantize", "a", "b", "--bits", "x"]):
        text = " ".join(error_lines(halfbyte(*arguments))).lower()
        assert not re.search("pydantic|value error|input should|unable to parse", text), text


def test_several_words_are_told_to_be_put_into_quotation_marks() -> None:
    assert error_lines(halfbyte("run", "How", "do", "I"))[1].endswith('halfbyte run "How do I"')


def test_arguments_of_the_library_are_options_in_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, [errors.DeviceError("no GPU.", "Use device='cpu', weights='q4g32' or kv_dtype='f16'.")])
    assert error_lines(halfbyte("run", "x"))[1] == "Use --device cpu, --weights q4g32 or --kv-cache f16."


def test_the_help_lists_every_exit_code() -> None:
    assert set(MEANINGS) == {0, 1, *(kind.exit_code for kind in KINDS), 70, 71, 74, 130, 143}
    text = halfbyte("--help").stdout
    for code, meaning in MEANINGS.items():
        assert re.search(rf"(?<!\S){code}  {re.escape(meaning)}(\s|$)", text)


@pytest.mark.parametrize(
    "command", ["", "run", "chat", "bench", "bench throughput", "eval table", "models", "quantize"]
)
def test_help_is_asked_for_in_every_way_and_fits_80_columns(command: str) -> None:
    words = command.split()
    shown = halfbyte(*words, "--help").stdout
    assert f"Usage: halfbyte {command}".strip() in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert halfbyte(*words, "-h").stdout == halfbyte("help", *words).stdout == shown


def test_ranges_and_defaults_are_said_in_words() -> None:
    shown = " ".join(halfbyte("serve", "--help").stdout.split())
    assert "[default: 8080; 0 to 65535]" in shown
    assert "[default: one per core]" in shown
    assert "[default: 600; at least 0.1]" in shown


def test_a_temperature_that_means_threads_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["x"], ["x"])
    assert "For CPU threads: --threads N." in halfbyte("run", "x", "-t", "8").stderr
    assert halfbyte("run", "x", "-t", "1.5").stderr == ""


@pytest.mark.parametrize(("name", "words"), [("", "empty"), ("no.gguf", "no.gguf does not exist"), ("no", "neither")])
def test_a_model_that_cannot_be_is_named_as_it_was_typed(name: str, words: str) -> None:
    for command in (["run", "x"], ["plan"], ["bench"]):
        result = halfbyte(*command, "-m", name)
        assert result.exit_code == errors.ModelNotFoundError.exit_code
        assert words in error_lines(result)[0]


def test_the_pocket_model_has_a_name() -> None:
    assert halfbyte("models", "show", "pocket").stdout == halfbyte("models", "show").stdout


def test_help_names_each_command_in_a_whole_sentence() -> None:
    for arguments in ((), ("bench",), ("eval",), ("models",)):
        listed = halfbyte(*arguments, "--help").stdout.partition("\nCommands:")[2].strip()
        assert listed
        assert all(line.endswith(".") and not line.endswith("...") for line in listed.splitlines())


def test_help_and_version_succeed() -> None:
    assert halfbyte().stdout == halfbyte("--help").stdout
    assert "Run 4-bit language models" in halfbyte("--help").stdout
    assert halfbyte("--version").stdout.startswith("halfbyte ")


@pytest.mark.parametrize(
    ("package", "compiled", "importing", "what"),
    [("cpu", "_native", "halfbyte.cpu", "the CPU"), ("gpu.device", "_record", "halfbyte.gpu.device.passes", "GPUs")],
)
def test_code_that_is_not_compiled_is_a_sentence(package: str, compiled: str, importing: str, what: str) -> None:
    """In a process of its own, since an import that fails leaves half of the package behind."""
    code = f"import sys; sys.modules['halfbyte.{package}.{compiled}'] = None; import {importing}"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(rf"DeviceError: .*code for {what} is missing.*with pip", failed.stderr, re.DOTALL)
