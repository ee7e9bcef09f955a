"""`halfbyte run`: what is asked of the model, and what is printed where."""

from __future__ import annotations

import io
import json
import os
import threading
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from halfbyte.cli import options as opt
from halfbyte.cli.prompts import single_request
from halfbyte.options import RunOptions
from halfbyte.prompts import BREAKERS
from halfbyte.sampling.params import SAMPLERS, SamplingParams
from tests.unit.cli_fakes import FakeStream, error_lines, halfbyte, use_fake

FIGURES = ["prompt_tokens", "new_tokens", "prefill_ms", "ms_per_token", "tokens_per_s", "total_s"]
KEYS = ["prompt", "text", "token_ids", "finish_reason", *FIGURES]


def test_the_answer_alone_is_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["Use ", "tar -xf."])
    result = halfbyte("run", "How?")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Use tar -xf.\n", "")
    assert model.asked[0][0] == "How?"
    assert model.streams[0].closed


def test_an_answer_that_ends_a_line_gets_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["done\n"])
    assert halfbyte("run", "x").stdout == "done\n"


def test_without_options_it_is_greedy_on_the_pocket_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"])
    halfbyte("run", "x")
    assert model.loads == [(None, RunOptions(), {"revision": None, "offline": False})]
    options = model.asked[0][1]
    assert (options["temperature"], options["max_tokens"], options["stop"]) == (0.0, 256, ())


def test_what_the_chat_template_reads_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"], ["y"])
    assert halfbyte("run", "x", "--chat-template-kwargs", '{"enable_thinking": false}').exit_code == 0
    assert halfbyte("chat", "--chat-template-kwargs", '{"effort": "low"}', stdin="hello\n").exit_code == 0
    found = [options["template_variables"] for _, options in model.asked]
    assert found == [{"enable_thinking": False}, {"effort": "low"}]


@pytest.mark.parametrize(
    ("given", "why"), [("{", "is not JSON"), ("[1]", "is no JSON object"), ("{}", "has no effect with --raw")]
)
def test_what_is_wrong_with_what_the_template_reads_is_told(given: str, why: str) -> None:
    raw = ["--raw"] if given == "{}" else []
    result = halfbyte("run", "x", "--chat-template-kwargs", given, *raw)
    assert result.exit_code == 2
    assert why in " ".join(error_lines(result))


def test_every_option_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"])
    arguments = (
        "run x -m org/name --revision v1 --offline --device auto --weights q4g64 --kv-cache q8 --context 512 "
        "--activations f32 --threads 3 --batch-tokens 64 --cache-tokens 1024 --system S -n 9 --stop END --stop ### "
        "--ignore-eos -t 0.7 --top-k 40 "
        "--top-p 0.9 --min-p 0.05 --typical-p 0.8 --repetition-penalty 1.1 --presence-penalty 0.2 "
        "--frequency-penalty 0.3 --logit-bias 5=-1.5 --logit-bias 6=2 --seed 11 --json --logprobs 2 "
        "--dynatemp-range 0.2 --dynatemp-exponent 1.5 --top-n-sigma 2 --xtc-probability 0.4 --xtc-threshold 0.2 "
        "--mirostat 2 --mirostat-tau 4 --mirostat-eta 0.2 --repeat-last-n 64 --dry-multiplier 0.8 --dry-base 1.5 "
        "--dry-allowed-length 3 --dry-penalty-last-n 512 --dry-sequence-breaker \\n --dry-sequence-breaker a\\\\n "
        "--samplers penalties,dry;xtc,typical_p,min_p,top_n_sigma,top_p,top_k,temperature"
    )
    assert halfbyte(*arguments.split()).exit_code == 0
    run = RunOptions(
        context=512, weights="q4g64", kv_dtype="q8", activations="f32", threads=3, batch_tokens=64, cache_tokens=1024
    )
    assert model.loads == [("org/name", run, {"revision": "v1", "offline": True})]
    assert model.asked[0][1] == {
        "system": "S", "max_tokens": 9, "stop": ("END", "###"), "raw": False, "ignore_eos": True, "temperature": 0.7,
        "top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "logit_bias": {5: -1.5, 6: 2.0}, "seed": 11, "logprobs": 2,
        "dynatemp_range": 0.2, "dynatemp_exponent": 1.5, "top_n_sigma": 2.0, "xtc_probability": 0.4,
        "xtc_threshold": 0.2, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.2, "repeat_last_n": 64,
        "dry_multiplier": 0.8, "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 512,
        "dry_sequence_breakers": ["\n", "a\\n"],
        "samplers": [
            "penalties", "dry", "xtc", "typical_p", "min_p", "top_n_sigma", "top_p", "top_k", "temperature"
        ],
    }  # fmt: skip


def test_an_answer_is_held_to_the_schema_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}')
    result = halfbyte("run", "x", "--threads", "1", "--device", "cpu", "--json-schema", str(file))
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ],
)
def test_a_file_that_is_no_schema_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "schema.json"
    if text is not None:
        file.write_text(text)
    result = halfbyte("run", "x", "--threads", "1", "--device", "cpu", "--json-schema", str(file))
    assert result.exit_code == 2
    message, hint = error_lines(result)
    assert words in message
    assert hint


def test_none_is_no_sequence_breaker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"])
    assert halfbyte("run", "x", "--dry-multiplier", "1", "--dry-sequence-breaker", "none").exit_code == 0
    assert model.asked[0][1]["dry_sequence_breakers"] == []


def test_sampling_options_left_out_are_the_librarys_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["x"], ["x"])
    halfbyte("run", "x")
    halfbyte("chat", stdin="x\n")
    known = {field.name for field in fields(SamplingParams)}
    for _, options in model.asked:
        assert SamplingParams(**{name: options[name] for name in known & options.keys()}) == SamplingParams()
        assert not {"samplers", "dry_sequence_breakers"} & options.keys()
    assert opt.Samplers.__metadata__[0].show_default == ", ".join(SAMPLERS)
    assert opt.DrySequenceBreaker.__metadata__[0].show_default == " ".join(BREAKERS).replace("\n", "\\n")


@pytest.mark.parametrize("arguments", [("run",), ("run", "-")])
def test_a_piped_prompt_loses_one_line_break(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    model = use_fake(monkeypatch, ["x"])
    assert halfbyte(*arguments, stdin="first\n\nsecond\n\n").exit_code == 0
    assert model.asked[0][0] == "first\n\nsecond\n"


@pytest.mark.parametrize(("piped", "asked"), [("log\nline\n", "Explain:\n\nlog\nline"), ("", "Explain:")])
def test_what_is_piped_comes_after_the_prompt(monkeypatch: pytest.MonkeyPatch, piped: str, asked: str) -> None:
    model = use_fake(monkeypatch, ["x"])
    assert halfbyte("run", "Explain:", stdin=piped).exit_code == 0
    assert model.asked[0][0] == asked


def test_a_pipe_that_stays_silent_is_waited_for_with_a_note(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("halfbyte.cli.prompts.PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin, os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdin", stdin)
        timer = threading.Timer(0.5, lambda: (pipe.write("late"), pipe.close()))
        timer.start()
        request = single_request("Explain:", system=None, max_tokens=1)
        timer.join()
    assert request.prompt == "Explain:\n\nlate"
    assert "Waiting for standard input" in capfd.readouterr().err


def test_the_null_device_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert single_request("Explain:", system=None, max_tokens=1).prompt == "Explain:"


@pytest.mark.parametrize(("raw", "why"), [([], True), (["--raw"], False)])
def test_an_empty_answer_is_explained_not_an_empty_line(
    monkeypatch: pytest.MonkeyPatch, raw: list[str], why: bool
) -> None:
    model = use_fake(monkeypatch, [""])
    model.tokenizer = SimpleNamespace(has_chat_template=False)  # type: ignore[attr-defined]
    result = halfbyte("run", "x", *raw)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "The answer has no text" in result.stderr
    assert ("the prompt is continued as plain text" in result.stderr) == why
    assert ("fake has no chat template, so it continues" in result.stderr) == why


def test_json_has_exactly_the_promised_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["Grüße ", "☃"])
    result = halfbyte("run", "x", "--json")
    record = json.loads(result.stdout)
    assert list(record) == KEYS
    assert record["text"] == "Grüße ☃"
    assert "☃" in result.stdout
    assert (record["token_ids"], record["new_tokens"], record["tokens_per_s"]) == ([10, 11], 2, 250.0)


def test_figures_that_one_token_does_not_have_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["x"])
    record = json.loads(halfbyte("run", "x", "--json").stdout)
    assert (record["ms_per_token"], record["tokens_per_s"]) == (None, None)


def test_log_probabilities_are_there_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["x"])
    record = json.loads(halfbyte("run", "x", "--json", "--logprobs", "2").stdout)
    assert list(record) == [*KEYS, "logprobs"]
    assert record["logprobs"] == [{"id": 10, "text": "x", "logprob": -0.5, "top": [[10, -0.5], [3, None]]}]


def test_stats_are_a_table_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["a", "b"])
    result = halfbyte("run", "x", "--stats")
    assert result.stdout == "ab\n"
    header, row = result.stderr.splitlines()
    assert header.split() == FIGURES
    assert row.split() == ["7", "2", "12.50", "4.00", "250.00", "0.500"]


def test_verbose_says_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake(monkeypatch, ["a"])
    result = halfbyte("run", "x", "-v")
    assert result.stdout == "a\n"
    assert "fake: 17.4 MB" in result.stderr
    assert "cpu: you asked for it" in result.stderr


def test_a_full_context_is_said_beside_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["cut"])
    model.plan = SimpleNamespace(context=64)  # type: ignore[attr-defined]
    finish = FakeStream.result
    monkeypatch.setattr(FakeStream, "result", lambda self: replace(finish(self), finish_reason="context"))
    result = halfbyte("run", "x")
    assert (result.exit_code, result.stdout) == (0, "cut\n")
    assert "(stopped after 1 tokens: the context of 64 tokens is full)" in result.stderr


def test_ctrl_c_keeps_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = use_fake(monkeypatch, ["half an ", "answer", KeyboardInterrupt(), "never"])
    result = halfbyte("run", "x")
    assert (result.exit_code, result.stdout) == (130, "half an answer\n")
    assert error_lines(result) == []
    assert model.streams[0].closed


def test_a_reader_that_goes_away_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    use_fake(monkeypatch, ["x", "y"])
    monkeypatch.setattr("sys.stdout", Closed())
    from halfbyte.cli.app import app

    with pytest.raises(SystemExit) as ended:
        app(["run", "x"], prog_name="halfbyte")
    assert ended.value.code == 1
