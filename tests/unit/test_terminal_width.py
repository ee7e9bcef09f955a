"""What commands print on a terminal of 80 columns: only a path may make a line wider, and every word is whole."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_cli_process import COMMAND, on_terminal, too_wide

WIDTH = 80
CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
QUICK = ("--device", "cpu", "--threads", "1")
BAR = {"starting", "weights"}
"""What a bar says where loading takes long; a pipe has none."""


def lines_of(recording: str) -> list[str]:
    """The lines that a terminal showed, each state of a bar that was drawn again among them."""
    return CODES.sub("", recording).replace("\r", "\n").split("\n")


def words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z]{3,}", text))


@pytest.mark.parametrize(
    "arguments",
    [
        ("doctor",),
        ("plan",),
        ("show",),
        ("list",),
        ("run", "How do I list files?", *QUICK, "-n", "8", "--stats", "-v"),
        ("bench", *QUICK, "-p", "8,16,24,32,40,48", "-n", "2", "-r", "1", "--warm-up", "0"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_lines_fit_and_their_words_are_those_of_the_piped_output(arguments: tuple[str, ...]) -> None:
    shown = lines_of(on_terminal(*arguments, width=WIDTH))
    piped = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (piped.returncode, too_wide(shown, WIDTH)) == (0, [])
    assert words("\n".join(shown)) - words(piped.stdout + piped.stderr) - BAR == set()


def test_a_chat_fits_and_answers_what_was_typed_before_it_began(tmp_path: Path) -> None:
    typed = "How do I list files?\n/stats\n/set\n/help\n/nonsense\n/set temperature none\n"
    state = {"XDG_STATE_HOME": str(tmp_path)}
    command = ("chat", *QUICK, "-v")
    shown = lines_of(on_terminal(*command, width=WIDTH, typed=f"{typed}\x04", PROMPT_TOOLKIT_NO_CPR="1", **state))
    piped = subprocess.run([*COMMAND, *command], capture_output=True, text=True, input=typed)
    assert too_wide(shown, WIDTH) == []
    assert "Use ls:" in "\n".join(shown)
    greeting = "pocket on cpu. /help lists commands, Ctrl-D leaves."
    assert words("\n".join(shown)) - words(piped.stdout + piped.stderr + typed + greeting) - BAR == set()


def test_a_batch_with_its_bar_fits(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "a-name-that-is-rather-long.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What does {name} do?"}) + "\n" for name in ("ls", "cp", "mv")))
    command = ("run", "--prompts", str(prompts), "--output", str(out), *QUICK, "-n", "8")
    shown = lines_of(on_terminal(*command, width=WIDTH))
    assert [line for line in shown if len(line) > WIDTH] == []
    assert len(out.read_text().splitlines()) == 3


def test_quantizing_fits_and_ends_with_the_next_command(shell_29m: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    shown = lines_of(on_terminal("quantize", str(shell_29m), str(target), width=WIDTH))
    assert [line for line in shown if len(line) > WIDTH and str(target) not in line] == []
    assert any("bits per weight" in line for line in shown)
    assert "try it" in "\n".join(shown)


def test_a_table_of_methods_fits(shell_29m: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("How do I list files? Use ls. " * 40)
    lengths = "8,12,16,20,24,28,32,36,40"
    command = ("eval", "table", "-m", str(shell_29m), "--text", str(text), "--calibration", str(text))
    options = ("--methods", "bf16", "--windows", lengths, "--max-tokens", "40", "--keep", str(tmp_path / "kept"))
    shown = lines_of(on_terminal(*command, *options, width=WIDTH))
    assert too_wide(shown, WIDTH) == []
    assert {*lengths.split(","), "perplexity", "KL"} <= set(" ".join(shown).split())
