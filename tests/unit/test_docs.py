"""The documentation is true: links lead somewhere, commands and options exist, figures are those of the results."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.peers import report
from halfbyte.report import schema, throughput_schema

ROOT = Path(__file__).parents[2]
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
def test_lines_of_prose_can_be_read_side_by_side(page: Path) -> None:
    longest = LONGEST.get(name(page), 140)
    assert [line for line in prose(page) if len(line) > longest] == []


def commands(page: Path) -> Iterator[list[str]]:
    """Every command of Halfbyte or of the benchmarks that a page shows, in words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^    (?:\$ )?((?:halfbyte|python) .*)$", text, re.MULTILINE)
    shown += re.findall(r"`((?:halfbyte|python) [^`]*)`", text)
    yield from (shlex.split(command, comments=True) for command in shown)


@cache
def help_of(*command: str) -> str:
    """What a command prints with --help; empty if there is no such command."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    asked = [sys.executable, "-m", *command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, cwd=ROOT)
    return done.stdout if done.returncode == 0 else ""


def subcommands(*command: str) -> set[str]:
    listed = help_of(*command).partition("Commands:")[2]
    return set(re.findall(r"^  ([a-z]\S*)", listed, re.MULTILINE))


def parsed(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The command that words call, and the options they give it."""
    command = [words[0]] if words[0] == "halfbyte" else [words[2]]
    for word in words[1:] if words[0] == "halfbyte" else ():
        if word not in subcommands(*command):
            break
        command.append(word)
    return tuple(command), [word.split("=")[0] for word in words[len(command) :] if re.match(r"--?[a-z]", word)]


def has(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if next(commands(page), None)], ids=name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), words
            continue
        if words[0] == "python" and words[2] != "halfbyte":
            assert importlib.util.find_spec(words[2]) is not None, words
        command, options = parsed(words)
        text = help_of(*command)
        assert text, words
        if command[0] == "halfbyte" and len(words) > 1 and not words[1].startswith("-"):
            assert len(command) > 1, f"{words}: there is no such command"
        if command[1:] == ("bench", "against"):
            text += help_of("halfbyte", "bench")
        assert [option for option in options if not has(text, option)] == [], words


@pytest.mark.timeout(600)
def test_options_named_in_prose_belong_to_some_command() -> None:
    tree: list[tuple[str, ...]] = [("halfbyte",)]
    for command in tree:
        tree += [(*command, each) for each in sorted(subcommands(*command))]
    everything = "".join(help_of(*command) for command in tree)
    everything += help_of("benchmarks.peers") + help_of("benchmarks.tables")
    for page in PAGES:
        for line in prose(page):
            for option in re.findall(r"`(--[a-z][\w-]*)", line):
                assert has(everything, option), f"{name(page)}: {option}"


@pytest.mark.parametrize("page", tables.PAGES, ids=name)
def test_tables_are_what_the_results_give(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == tables.filled(page), "run python -m benchmarks.tables"


def test_every_table_stands_on_a_page() -> None:
    shown = [found for page in tables.PAGES for found in re.findall(r"<!-- table ([\w-]+) -->", page.read_text())]
    assert sorted(shown) == sorted(tables.TABLES)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_results_are_named_by_kind_and_date(path: Path) -> None:
    found = re.fullmatch(r"(bench|peers|throughput)-(\d{4}-\d{2}-\d{2})\.jsonl", path.name)
    assert found is not None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {
        "bench": ("kind", schema.KIND, schema.SCHEMA),
        "peers": ("benchmark", "peers", report.SCHEMA),
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
