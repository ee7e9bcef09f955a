"""The documentation is true: links lead somewhere, commands and options exist, figures are those of the results."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import typer

from benchmarks import serving, tables
from benchmarks.peers import report
from halfbyte.cli.app import app
from halfbyte.report import schema, throughput_schema

ROOT = Path(__file__).parents[2]
HALFBYTE: Any = typer.main.get_command(app)
LAB = sorted((ROOT / "docs" / "lab").glob("[0-9]*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = sorted(tables.RESULTS.rglob("*.jsonl"))
LONGEST = {"README.md": 120}
"""Characters of a line of prose; 140 where a page is not named."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> Iterator[str]:
    """Lines that are neither code nor tables, nor what a script wrote."""
    text = re.sub(r"<!-- table .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (line for line in text.splitlines() if not line.startswith(("    ", "|")))


def anchors(page: Path) -> set[str]:
    """The names by which headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_other_sites_are_whole_and_encrypted(page: Path) -> None:
    for target in re.findall(r"\]\((\w+://[^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[\w./#?=&%~+-]*)?", target), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_prose_can_be_read_side_by_side(page: Path) -> None:
    longest = LONGEST.get(name(page), 140)
    assert [line for line in prose(page) if len(line) > longest] == []


def shown(page: Path) -> Iterator[list[str]]:
    """The words of every line of code that calls Halfbyte or the benchmarks, without what a shell does with them."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"^```sh\n(.*?)^```", lambda found: indent(found[1], "    "), text, flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"^    (?:.*[|$] )?(?:\.venv/bin/)?((?:halfbyte|python) .*)$", text, re.MULTILINE):
        yield list(takewhile(lambda word: word not in ("|", "<", ">", ">>"), shlex.split(line, comments=True)))


def named(page: Path) -> Iterator[list[str]]:
    """The words of every command that a sentence names."""
    for command in re.findall(r"`((?:halfbyte|python) [^`]*)`", page.read_text(encoding="utf-8")):
        yield shlex.split(command)


def called(words: list[str]) -> tuple[Any, list[str]]:
    """The context of the command that words call, and the words that it is given."""
    found, given = typer.Context(HALFBYTE, info_name="halfbyte", **HALFBYTE.context_settings), words[1:]
    while given and given[0] in getattr(found.command, "commands", ()):
        found = typer.Context(found.command.commands[given[0]], info_name=given[0], parent=found)
        given = given[1:]
    return found, given


def options(command: Any) -> set[str]:
    """The options that a command's help shows."""
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}


@cache
def help_of(module: str) -> str:
    """What a module of the benchmarks prints with --help; empty if there is none."""
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout if done.returncode == 0 else ""


def has(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in (*shown(page), *named(page)):
        asked = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        if words[0] == "halfbyte":
            found, given = called(words)
            assert found.parent or re.match("-|help$", given[0]), f"{words}: there is no such command"
            known = options(found.command) | options(HALFBYTE)
            if found.info_name == "against":
                known |= options(found.parent.command)
            assert set(asked) <= known, words
        elif words[1] == "-m":
            text = help_of(words[2])
            assert text, words
            assert [option for option in asked[1:] if not has(text, option)] == [], words
        else:
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_given_what_they_take(page: Path) -> None:
    for words in shown(page):
        if words[0] == "halfbyte":
            found, given = called(words)
            with suppress(typer.Exit):
                found.command.make_context(found.info_name, given, parent=found.parent)


def test_options_named_in_prose_belong_to_some_command() -> None:
    tree = [HALFBYTE]
    for command in tree:
        tree += getattr(command, "commands", {}).values()
    known = set[str]().union(*map(options, tree))
    others = help_of("benchmarks.peers") + help_of("benchmarks.tables")
    for page in PAGES:
        for line in prose(page):
            for option in re.findall(r"`(--[a-z][\w-]*)", line):
                assert option in known or has(others, option), f"{name(page)}: {option}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/python.md"])
def test_python_on_pages_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in blocks:
        if "./folder" not in block:  # nothing that this machine may not have
            exec(block, names)
    assert "tar xf path/to/archive.tar.gz" in capsys.readouterr().out


@pytest.mark.parametrize("page", tables.PAGES, ids=name)
def test_tables_are_what_the_results_give(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == tables.filled(page), "run python -m benchmarks.tables"


def test_the_readme_says_of_llama_cpp_what_its_table_shows() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (NVIDIA|two CPU).*, (decode|prefill)[^|]* \| ([\d.,]+) \| ([\d.,]+) \|$", text, re.MULTILINE
    )
    times = {(machine, phase): list[float]() for machine, phase, *_ in rows}
    for machine, phase, ours, theirs in rows:
        times[machine, phase].append(float(ours.replace(",", "")) / float(theirs.replace(",", "")))
    decode, prefill = times["NVIDIA", "decode"], times["two CPU", "prefill"]
    said = f"decodes one conversation {min(decode):.1f} to {max(decode):.1f} times as fast on an H200"
    assert f"{said}, and reads prompts {min(prefill):.1f} times as fast on two CPU cores" in " ".join(text.split())
    assert max(times["NVIDIA", "prefill"]) < 1, "llama.cpp reads prompts faster with CUDA"


def test_every_table_stands_on_a_page() -> None:
    shown = [found for page in tables.PAGES for found in re.findall(r"<!-- table ([\w-]+) -->", page.read_text())]
    assert sorted(shown) == sorted(tables.TABLES)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_results_are_named_by_kind_and_date(path: Path) -> None:
    found = re.fullmatch(r"(bench|peers|serving|throughput)-(\d{4}-\d{2}-\d{2})\.jsonl", path.name)
    assert found is not None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {
        "bench": ("kind", schema.KIND, schema.SCHEMA),
        "peers": ("benchmark", "peers", report.SCHEMA),
        "serving": ("kind", serving.KIND, serving.SCHEMA),
        "throughput": ("kind", throughput_schema.KIND, throughput_schema.SCHEMA),
    }
    key, value, version = kinds[found[1]]
    assert {(line.get(key), line["schema"], line["time"][:10]) for line in lines} == {(value, version, found[2])}


@pytest.mark.parametrize("path", LAB, ids=lambda path: path.stem)
def test_an_experiment_says_what_was_asked_found_and_kept(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Question", "Set-up", "Result", "Kept?"]


def test_the_ledger_names_every_experiment() -> None:
    ledger = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[\d+\]\(lab/([^)]+)\)", ledger, re.MULTILINE) == [path.name for path in LAB]
    assert [path.name[:4] for path in LAB] == [f"{number:04}" for number in range(1, len(LAB) + 1)]
