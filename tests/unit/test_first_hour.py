"""The first hour of somebody who knows Ollama, llama.cpp, mlx-lm or transformers: 100 commands as they type them.

Each works, or is refused with the command or option that does here what was wanted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer

from halfbyte import model as halfbyte_model
from halfbyte.cli.app import app
from halfbyte.cli.habits import COMMANDS as TO_OURS
from halfbyte.cli.habits import HABITS, NO_COMMANDS, OTHER_NAMES
from halfbyte.errors import DownloadError
from tests.unit.cli_fakes import error_lines, halfbyte, put_load

WORKS = ""

OLLAMA = [
    ("run pocket 'What does ls do?' -n 4", WORKS),
    ("run phi-4-mini 'Why is the sky blue?' -n 4", WORKS),
    ("run llama3.2 'Why is the sky blue?'", "llama-3.2-1b or llama-3.2-3b"),
    ("run llama3.2:1b 'Why is the sky blue?'", "llama-3.2-1b"),
    ("run phi4-mini:latest 'Hello'", "phi-4-mini"),
    ("run mistral 'Hello'", "mistral-7b-v0.3"),
    ("run phi-4-mini:q4 'Hello'", "--weights q4g32"),
    ("run hf.co/org/name-GGUF:Q4_K_M 'Hello' -n 4", WORKS),
    ("run pocket", "halfbyte chat pocket"),
    ("run llama3.2", "halfbyte chat llama3.2"),
    ("run pocket -n 4 < notes.txt", WORKS),
    ("run pocket 'Summarize:' -n 4 < notes.txt", WORKS),
    ("run pocket --verbose 'What does ls do?' -n 4", WORKS),
    ("run pocket --format json 'Name three colours.'", "--json-schema FILE"),
    ("run pocket --keepalive 5m 'Hello'", "halfbyte serve MODEL"),
    ("run pocket --nowordwrap 'Hello'", "Leave it out"),
    ("chat pocket < notes.txt", WORKS),
    ("pull phi-4-mini", WORKS),
    ("pull hf.co/org/name-GGUF:Q4_K_M", WORKS),
    ("pull llama3.2:1b", "llama-3.2-1b"),
    ("pull phi-4-mini:q4", "--weights q4g32"),
    ("list", WORKS),
    ("ls", "halfbyte list"),
    ("show pocket", WORKS),
    ("rm phi-4-mini", "halfbyte list"),
    ("ps", "halfbyte serve MODEL"),
    ("stop pocket", "--idle-timeout"),
    ("create mine -f Modelfile", '--system "TEXT"'),
    ("cp pocket mine", "halfbyte show MODEL"),
    ("push me/mine", "hf upload"),
    ("signin", "hf auth login"),
    ("serve --help", WORKS),
    ("help", WORKS),
    ("help run", WORKS),
    ("--version", WORKS),
    ("-h", WORKS),
]

LLAMA_CPP = [
    ("llama-cli -m model.gguf -p 'Hello' -n 32", 'halfbyte run MODEL "PROMPT"'),
    ("-m model.gguf -p 'Hello'", "halfbyte run -m"),
    ("-p 'Hello'", "halfbyte run -p"),
    ("run -m pocket -p 'What does ls do?' -n 4", WORKS),
    ("run -m pocket --prompt 'What does ls do?' --n-predict 4", WORKS),
    ("run -m pocket -p 'Hello' -n 4 --temp 0.8 --top-k 40 --top-p 0.9 -s 1", WORKS),
    ("run -m pocket -p 'Hello' -n 4 -c 512", WORKS),
    ("run -m pocket -p 'Hello' -n 4 --ctx-size 512 --threads 2", WORKS),
    ("run -m pocket -f notes.txt -n 4", WORKS),
    ("run -m pocket --file notes.txt --repeat-penalty 1.1 --predict 4", WORKS),
    ("run -m pocket -sys 'Be brief.' -p 'Hello' -n 4", WORKS),
    ("run -hf org/name-GGUF:Q4_K_M -p 'Hello' -n 4", WORKS),
    ("run -m pocket -p 'Hello' -n 4 -jf schema.json", WORKS),
    ("run -m pocket -p 'Hello' -n 4 --perf", WORKS),
    ("run -m pocket -t 8 -n 4 -p 'Hello'", WORKS),
    ("run -m pocket -ngl 99 -p 'Hello'", "--device gpu"),
    ("run -m pocket --n-gpu-layers 99 -p 'Hello'", "--device gpu"),
    ("run -m pocket -ts 1,1 -p 'Hello'", "--gpu N"),
    ("run -m pocket -fa on -p 'Hello'", "Leave it out"),
    ("run -m pocket -b 512 -ub 512 -p 'Hello'", "--batch-tokens N"),
    ("run -m pocket -tb 8 -p 'Hello'", "--threads N"),
    ("run -m pocket --mlock --no-mmap -p 'Hello'", "Leave it out"),
    ("run -m pocket -ctk q8_0 -ctv q8_0 -p 'Hello'", "--kv-cache q8"),
    ("run -m pocket -cnv", "halfbyte chat MODEL"),
    ("run -m pocket -i -p 'Hello'", "halfbyte chat MODEL"),
    ("run -m pocket -no-cnv -p 'Hello'", "Leave it out"),
    ("run -m pocket -r 'User:' -p 'Hello'", "--stop TEXT"),
    ("run -m pocket -e -p 'Hello'", "printf"),
    ("run -m pocket --color -p 'Hello'", "Leave it out"),
    ("run -m pocket --verbose-prompt -p 'Hello'", ".encode("),
    ("run -m pocket --grammar-file list.gbnf -p 'Hello'", "--json-schema FILE"),
    ("run -m pocket --lora adapter.gguf -p 'Hello'", "Merge it"),
    ("run -m pocket -md draft.gguf -p 'Hello'", "no draft models"),
    ("run -m pocket --rope-freq-base 10000 -p 'Hello'", "config.json"),
    ("run -m pocket -p 'Hello' -n -1", "--max-tokens must be at least 1"),
    ("run ./missing.gguf 'Hello'", "does not exist"),
    ("run missing.gguf", "halfbyte run missing.gguf"),
    ("--list-devices", "halfbyte doctor"),
    ("chat -m pocket -cnv", "Leave it out"),
    ("chat -m pocket -p 'Hello'", 'halfbyte run MODEL "PROMPT"'),
    ("llama-bench -m model.gguf", "halfbyte bench MODEL"),
    ("bench pocket -p 8 -n 2 -r 1", WORKS),
    ("bench -m pocket -ngl 99", "--device gpu"),
    ("bench -m pocket -t 8", "--threads N"),
    ("llama-perplexity -m model.gguf -f notes.txt", "halfbyte eval perplexity MODEL --text FILE"),
    ("eval perplexity pocket --text notes.txt --no-store", WORKS),
    ("llama-quantize in.gguf out.gguf Q4_K_M", "halfbyte export SOURCE TARGET.gguf --kind q4_k_m"),
    ("quantize in.gguf out.gguf Q4_K_M", "halfbyte export SOURCE TARGET.gguf --kind q4_k_m"),
    ("llama-server -m model.gguf --port 8080", "halfbyte serve MODEL"),
    ("serve -m model.gguf -ngl 99", "halfbyte serve MODEL"),
    ("serve pocket --alias mine", "halfbyte serve NAME=MODEL"),
]

MLX = [
    ("mlx_lm.generate --model org/name --prompt 'Hello'", 'halfbyte run MODEL "PROMPT"'),
    ("generate --model org/name --prompt 'Hello'", 'halfbyte run MODEL "PROMPT"'),
    ("run --model pocket --prompt 'Hello' --max-tokens 4 --temp 0.7 --min-p 0.05 --seed 1", WORKS),
    ("run --model pocket --system-prompt 'Be brief.' --prompt - --max-tokens 4 < notes.txt", WORKS),
    ("run --model pocket --prompt 'Hello' --max-kv-size 512", "--context N"),
    ("run --model pocket --prompt 'Hello' --kv-bits 4", "--kv-cache q4"),
    ("run --model pocket --prompt 'Hello' --adapter-path lora", "Merge it"),
    ("run --model pocket --prompt 'Hello' --ignore-chat-template", "--raw"),
    ("run --model pocket --prompt 'Hello' --extra-eos-token END", "--stop TEXT"),
    ("run --model pocket --prompt 'Hello' --draft-model org/name", "no draft models"),
    ("mlx_lm.chat --model org/name", "halfbyte chat MODEL"),
    ("mlx_lm.convert --hf-path org/name -q", "halfbyte quantize SOURCE TARGET"),
    ("quantize --hf-path org/name -q", "halfbyte quantize SOURCE TARGET"),
    ("mlx_lm.server --model org/name", "halfbyte serve MODEL"),
]

TRANSFORMERS = [
    ("transformers chat org/name", "halfbyte chat MODEL"),
    ("chat --model-name-or-path pocket < notes.txt", WORKS),
    ("run org/name 'Hello' --max-new-tokens 4", WORKS),
    ("run org/name 'Hello' --do-sample", "--temperature 0.7"),
    ("run org/name 'Hello' --device-map auto", "--device gpu"),
    ("run org/name 'Hello' --device cuda", "Did you mean gpu?"),
    ("run org/name 'Hello' --torch-dtype bfloat16", "--weights f16"),
    ("run org/name 'Hello' --load-in-4bit", "--weights q4g32"),
    ("run org/name 'Hello' --trust-remote-code", "Leave it out"),
    ("run org/name 'Hello' --num-beams 4", "no beam search"),
    ("run org/name", "halfbyte chat org/name"),
    ("env", "halfbyte doctor"),
    ("download org/name", "halfbyte pull MODEL"),
    ("serve org/name --max-model-len 4096 --gpu-memory-utilization 0.9", "--cache-tokens N"),
    ("serve org/name --tensor-parallel-size 2", "--replicas N"),
]

ANYONE = [
    ("", WORKS),
    ("run -h", WORKS),
    ("'How do I list files?'", 'halfbyte run "How do I list files?"'),
    ("phi-4-mini", "halfbyte chat phi-4-mini"),
    ("run How do I list files", 'halfbyte run "How do I list files"'),
    ("run 'Hello' --temprature 0.7", "--temperature"),
    ("rnu 'Hello'", "'run'"),
    ("run 'Hello' --seed 7", "--temperature"),
    ("version", "halfbyte --version"),
    ("plan pocket", WORKS),
    ("profile pocket 'Hello' -n 2", WORKS),
    ("tune pocket --device cpu", WORKS),
]

COMMANDS = [*OLLAMA, *LLAMA_CPP, *MLX, *TRANSFORMERS, *ANYONE]


@pytest.fixture(scope="module")
def pocket() -> Any:
    model = halfbyte_model.load(threads=1, context=512)
    close, model.close = model.close, lambda: None  # type: ignore[method-assign] # commands close what they share here
    yield model
    close()


@pytest.fixture(autouse=True)
def _first_hour(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pocket: Any) -> None:
    """A folder with two files; and the pocket model in the place of any that could be downloaded."""
    (tmp_path / "notes.txt").write_text("What does ls do?\n")
    (tmp_path / "schema.json").write_text('{"type": "boolean"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def load(name: Any, *options: Any, **more: Any) -> Any:
        with suppress(DownloadError):  # a model of the hub that is named well
            halfbyte_model.locate(name, None, offline=True)
        return pocket

    put_load(monkeypatch, load)
    monkeypatch.setattr("halfbyte.checkpoint.hub._download", lambda *_: tmp_path)


@pytest.mark.parametrize(("line", "expected"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_command_works_or_names_the_right_one(line: str, expected: str) -> None:
    command, _, file = line.partition(" < ")
    result = halfbyte(*shlex.split(command), stdin=Path(file).read_text() if file else "")
    if expected == WORKS:
        assert result.exit_code == 0, result.stderr
        return
    assert result.exit_code in (2, 3), result.output
    assert expected in " ".join(error_lines(result))


def test_there_are_a_hundred() -> None:
    assert len({line for line, _ in COMMANDS}) >= 100


def test_what_is_named_instead_exists() -> None:
    commands = list(_commands(typer.main.get_command(app)))
    options = {
        name for command in commands for param in command.params for name in (*param.opts, *param.secondary_opts)
    }
    said = (
        [habit.instead for habit in HABITS] + list(TO_OURS.values()) + [" ".join(pair) for pair in NO_COMMANDS.values()]
    )
    assert options >= OTHER_NAMES.keys()
    assert options >= {habit.needs for habit in HABITS if habit.needs}
    for text in said:
        assert options | {"--upgrade"} >= set(re.findall(r"(?<!\S)--[a-z][\w-]*", text)), text
        assert {command.name for command in commands} >= set(re.findall(r"halfbyte ([a-z]+)", text)), text


def test_no_name_of_an_option_means_two_things() -> None:
    others = [name for names in OTHER_NAMES.values() for name in names.split()]
    assert len(set(others)) == len(others)
    assert not set(others) & OTHER_NAMES.keys()
    assert not set(TO_OURS) & set(NO_COMMANDS)


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from _commands(inner)
