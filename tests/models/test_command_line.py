"""The commands as a user runs them: real processes, real models, real damage."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUESTION = "How do I extract a tar archive?"
ANSWER = "Use `tar`:\n`tar xf path/to/archive.tar.gz`"


def halfbyte(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "halfbyte", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, **options)


def refusal(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of error that a refused command prints, checked for its form."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("error: ")
    assert 1 <= len(lines) <= 2
    return done.stderr


@pytest.fixture
def model(shell_29m: Path, tmp_path: Path) -> Path:
    """A copy of the trained checkpoint that may be damaged."""
    for file in shell_29m.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file's header and body."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(file: Path, header: dict[str, Any], body: bytes) -> None:
    """Write a safetensors file by hand."""
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def drop_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))


def reshape_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.zeros(511, np.float32)}))


def change_dtype(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.zeros(512, np.int64)}))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of a checkpoint; all become float32 zeros of their shape."""
    from safetensors.numpy import save_file

    header, _ = header_of(folder / "model.safetensors")
    tensors = {name: np.zeros(entry["shape"], np.float32) for name, entry in header.items() if name != "__metadata__"}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)


def lie(folder: Path) -> None:
    header, body = header_of(folder / "model.safetensors")
    header["model.norm.weight"]["data_offsets"] = [0, 1 << 50]
    write_header(folder / "model.safetensors", header, body)


def overlap(folder: Path) -> None:
    header, body = header_of(folder / "model.safetensors")
    header["model.norm.weight"]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]
    write_header(folder / "model.safetensors", header, body)


def absurd(folder: Path) -> None:
    header, body = header_of(folder / "model.safetensors")
    header["model.norm.weight"]["shape"] = [1 << 40, 1 << 40]
    write_header(folder / "model.safetensors", header, body)


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def templated(template: str) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "tokenizer_config.json", chat_template=template)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "truncated weights": (truncate, 4, "model.safetensors"),
    "offsets beyond the file": (lie, 4, "model.norm.weight"),
    "overlapping tensors": (overlap, 4, "overlaps|hole"),
    "absurd shape": (absurd, 4, "shape"),
    "missing tensor": (drop_tensor, 4, "model.norm.weight"),
    "wrong shape": (reshape_tensor, 4, "511"),
    "wrong dtype": (change_dtype, 5, "I64"),
    "NaN in the configuration": (configured(rms_norm_eps=float("nan")), 4, "rms_norm_eps"),
    "absurd configuration": (configured(num_hidden_layers=10**12), 4, "num_hidden_layers"),
    "unsupported architecture": (configured(model_type="rwkv"), 5, "gemma4_text, granite, lfm2, llama"),
    "no configuration": (without("config.json"), 3, "config.json"),
    "no tokenizer": (without("tokenizer.json"), 4, "tokenizer.json"),
    "no weights": (without("model.safetensors"), 3, "model.safetensors"),
    "a template that raises": (templated("{{ raise_exception('Only haiku, please') }}"), 9, "Only haiku, please"),
    "a template that breaks out": (templated("{{ ''.__class__.__mro__ }}"), 9, "template"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_in_a_line(model: Path, damage: str) -> None:
    do, code, said = DAMAGE[damage]
    do(model)
    message = refusal(halfbyte("run", "-m", model, "hello"), code)
    assert any(part in message for part in said.split("|")), message


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "-m", "./no/such/folder", "hello"], 3, "no/such/folder"),
        (["run", "-m", "nobody/nothing", "hello"], 8, "nobody/nothing"),
        (["run", ""], 2, "empty"),
        (["run", "hello", "--temperature", "-1"], 2, "-1"),
        (["run", "hello", "--top-p", "0.5"], 2, "temperature"),
        (["run", "hello", "--raw", "--system", "Be brief."], 2, "system"),
        (["run", "hello", "--context", "9999"], 2, "2048"),
        (["run", "hello", "--device", "reference", "--threads", "0"], 2, "threads"),
        (["run", "hello", "--device", "reference", "--threads", "2"], 2, "threads"),
        (["run", "hello", "--device", "cpu", "--gpu", "0"], 2, "--gpu 0 cannot be combined with --device cpu."),
        (["run", "hello", "--weights", "q5x"], 5, "q5x"),
        (["run", "word " * 3000], 6, "2,048"),
        (["run", "hello", "--logit-bias", "999999=3"], 2, "999999"),
        (["run", "--prompts", "no-such-file.jsonl"], 2, "no-such-file.jsonl"),
        (["plan", "-m", "./no/such/folder"], 3, "no/such/folder"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(arguments: list[str], code: int, said: str) -> None:
    done = halfbyte(*arguments)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert said in done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in halfbyte("--debug", "run", "-m", "./no/such/folder", "hello").stderr


def test_the_pocket_model_answers() -> None:
    done = halfbyte("run", QUESTION)
    assert (done.returncode, done.stdout.rstrip("\n"), done.stderr) == (0, ANSWER, "")


def test_json_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "{QUESTION}"}}\n{{"prompt": "What does grep do?"}}\n')
    done = halfbyte("run", "--prompts", prompts, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    promised = (
        "line prompt text token_ids finish_reason prompt_tokens new_tokens prefill_ms ms_per_token tokens_per_s total_s"
    )
    assert [list(row) for row in rows] == [promised.split()] * 2
    assert rows[0]["text"] == ANSWER
    assert rows[0]["new_tokens"] == len(rows[0]["token_ids"]) == 15


def test_ctrl_c_keeps_what_was_printed(shell_29m: Path) -> None:
    arguments = [
        "run",
        "-m",
        str(shell_29m),
        "--raw",
        "Once upon a time",
        "--ignore-eos",
        "-n",
        "1500",
        "--device",
        "reference",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "halfbyte", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.read(12)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert len(first + rest) >= 12
    assert "Traceback" not in errors


def test_the_pocket_model_answers_within_a_second_of_processor_time() -> None:
    """The whole answer, from process start; on a slow machine eight times what Python takes to import NumPy."""
    numpy = processor_time(lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True))
    assert processor_time(lambda: halfbyte("run", QUESTION)) <= max(1.0, 8 * numpy)


def processor_time(of: Callable[[], subprocess.CompletedProcess[Any]]) -> float:
    """Seconds that a process and its children took of the processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert of().returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_plan_as_json_names_every_step() -> None:
    plan = json.loads(halfbyte("plan", "--json").stdout)
    assert [step["op"] for step in plan["steps"]].count("Attention") == 8
    assert plan["tensors"]["model.embed_tokens.weight"]["dtype"] == "q6_k"


def test_quantize_then_run(shell_29m: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    assert halfbyte("quantize", shell_29m, target, "--group-size", "32", "--zero-points").returncode == 0
    assert halfbyte("run", "-m", target, QUESTION).stdout.rstrip("\n") == ANSWER
    refusal(halfbyte("quantize", shell_29m, target), 2)


def test_export_then_run(shell_29m: Path, tmp_path: Path) -> None:
    target = tmp_path / "shell.gguf"
    assert halfbyte("export", shell_29m, target, "--kind", "q8_0").returncode == 0
    assert halfbyte("run", "-m", target, QUESTION).stdout.rstrip("\n") == ANSWER
    refusal(halfbyte("export", shell_29m, target), 2)
    refusal(halfbyte("export", shell_29m, tmp_path / "x", "--to", "awq", "--kind", "q8_0"), 2)


def test_models_show_and_doctor_speak_json(shell_29m: Path) -> None:
    assert json.loads(halfbyte("models", "show", "--json").stdout)["parameters"] == 29_368_832
    doctor = json.loads(halfbyte("doctor", "--json").stdout)
    assert doctor["device"]["name"] == "cpu"
