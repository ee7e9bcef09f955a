"""What the site shows and no file in docs/ holds, as it would become untrue there; mkdocs calls this while it builds.

The reference of the commands is what their `--help` says, that of Python follows `halfbyte.__all__`, the tutorial is
run, and the pages about the project are files of the repository. Links to other files become their paths.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from posixpath import dirname, join, normpath
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any

import nbclient
import nbformat
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

import halfbyte
from halfbyte.cli.app import app
from halfbyte.cli.exit_codes import MEANINGS
from halfbyte.models import gguf_architecture, supported
from halfbyte.models.catalog import HUB_IDS, catalog_spec

ROOT = Path(__file__).parents[1]
SHOWN = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "icon.svg": "src/halfbyte/server/page/icon.svg",
}
"""Files of the site that are files of the repository."""

HALFBYTE: Any = typer.main.get_command(app)
_LINK = re.compile(r"\[([^][]+)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and put those of a folder into the navigation."""
    root = typer.Context(HALFBYTE, info_name="halfbyte", **HALFBYTE.context_settings)
    for name, command in commands(HALFBYTE):
        text = "\n".join(help_of(name, command, root, level=1))
        files.append(File.generated(config, f"reference/commands/{name}.md", content=text))
    for path, source in SHOWN.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        path = notebook.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, path, content=results(Path(str(notebook.abs_src_path)))))
    config.nav = with_folders(config.nav or [], files)
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is generated, and let links lead to pages of the site."""
    made = {"commands": command_table, "exit codes": exit_codes, "names": python_names}
    made |= {"families": family_table, "catalog": catalog_table}
    markdown = re.sub(f"<!-- ({'|'.join(made)}) -->", lambda found: made[found[1]](), markdown)
    here = SHOWN.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda found: linked(here, *found.groups(default="")), markdown)


def linked(here: str, text: str, target: str, anchor: str) -> str:
    """A link of a file of the repository as it stands on the site, or the path of what is not on the site."""
    path = normpath(join(dirname(here), target))
    if not path.startswith("docs/"):
        return text if text.strip("`") in path else f"{text} (`{path}`)"
    if not here.startswith("docs/"):
        target = path.removeprefix("docs/")
    return f"[{text}]({re.sub(r'ipynb$', 'md', target)}{anchor})"


def with_folders(nav: list[Any], files: Files) -> list[Any]:
    """A navigation in which the pages of a folder stand for its name with a slash."""
    entries: list[Any] = []
    for entry in nav:
        match entry:
            case dict():
                entries.append({
                    title: value if isinstance(value, str) else with_folders(value, files)
                    for title, value in entry.items()
                })  # fmt: skip
            case str() if entry.endswith("/"):
                entries += pages_in(entry, files)
            case _:
                entries.append(entry)
    return entries


def pages_in(folder: str, files: Files) -> list[str]:
    pages = [file for file in files.documentation_pages() if file.src_uri.startswith(folder)]
    return [page.src_uri for page in sorted(pages, key=lambda page: (page.name != "index", page.src_uri))]


def results(path: Path) -> str:
    """A notebook as a page, with what its cells gave when they were run just now.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            kernel_name="python3",
            extra_arguments=["--log-level=ERROR"],
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    shown = {"NbConvertBase": {"display_data_priority": ["text/html", "text/plain"]}}
    text, _ = MarkdownExporter(config=shown).from_notebook_node(notebook)
    return str(text)


def commands(group: Any) -> Iterator[tuple[str, Any]]:
    """The commands of a group that its help lists, in its order."""
    yield from ((name, command) for name, command in group.commands.items() if not command.hidden)


def help_of(name: str, command: Any, parent: Any, *, level: int) -> Iterator[str]:
    """A command's help in Markdown, and that of its own commands."""
    ctx, written = typer.Context(command, info_name=name, parent=parent), MarkdownHelp(level)
    command.format_help(ctx, written)
    yield f"{'#' * level} {ctx.command_path}\n"
    yield from written.lines
    if hasattr(command, "commands"):
        for each in commands(command):
            yield from help_of(*each, ctx, level=level + 1)


class MarkdownHelp:
    """What a command writes its help into, in place of the formatter for terminals."""

    width = 1000  # nothing is cut

    def __init__(self, level: int) -> None:
        self.lines: list[str] = []
        self._level = level

    def write_usage(self, command: str, arguments: str) -> None:
        self.lines.append(f"```text\n{command} {arguments}\n```\n")

    def write_paragraph(self) -> None:
        """Paragraphs are apart anyway."""

    def write_text(self, text: str) -> None:
        for paragraph in text.split("\n\n"):
            as_it_stands = paragraph.startswith("\b\n")
            self.lines.append(f"```text\n{paragraph[2:]}\n```\n" if as_it_stands else f"{escaped(paragraph)}\n")

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        for name, meaning in rows:
            text, _, limits = meaning.partition("  [")
            limits = f" *{limits[:1].upper()}{escaped(limits[1:-1])}.*" if limits else ""
            self.lines.append(f"`{name}`\n:   {escaped(text)}{limits}\n")

    @contextmanager
    def indentation(self) -> Iterator[None]:
        yield

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.lines.append(f"{'#' * (self._level + 1)} {name}\n")
        yield


def escaped(text: str) -> str:
    """A text whose signs mean nothing in Markdown, but for code between backticks."""
    return re.sub(r"(`[^`]+`)|([\\*_<\[\]#|])", lambda found: found[1] or f"\\{found[2]}", text)


def command_table() -> str:
    rows = [f"| [`halfbyte {name}`]({name}.md) | {escaped(command.get_short_help_str(200))} |"
            for name, command in commands(HALFBYTE)]  # fmt: skip
    return "\n".join(("| command | |", "|---|---|", *rows))


def family_table() -> str:
    """The families that can be run, and what they have been compared with."""
    rows = ["| `model_type` | models | compared with |", "|---|---|---|"]
    for kind in supported():
        about = (importlib.import_module(f"halfbyte.models.{kind}").__doc__ or "").split("\n\n")[0]
        architecture = gguf_architecture(kind)
        judges = "transformers" + (f"; llama.cpp, as GGUF `{architecture.name}`" if architecture else "")
        rows.append(f"| `{kind}` | {' '.join(about.partition(':')[2].split())} | {judges} |")
    return "\n".join(rows)


def catalog_table() -> str:
    """The models that have short names."""
    rows = ["| short name | on the hub | weights | context | in 4 bits |", "|---|---|---:|---:|---:|"]
    for name, hub in HUB_IDS.items():
        spec = catalog_spec(name)
        billions = spec.parameters * 1e-9
        packed = billions * 4.25 / 8
        rows.append(f"| `{name}` | {hub} | {billions:.1f} billion | {spec.context:,} | {packed:.1f} GB |")
    return "\n".join(rows)


def exit_codes() -> str:
    return "\n".join(("| code | |", "|---:|---|", *(f"| {code} | {text} |" for code, text in MEANINGS.items())))


def python_names() -> str:
    """The public names under headings, each for mkdocstrings to fill in."""
    sections: dict[str, list[str]] = {"Functions": [], "Types": [], "Errors": []}
    for name in sorted(halfbyte.__all__, key=str.lower):
        value = getattr(halfbyte, name)
        if isinstance(value, FunctionType):
            sections["Functions"].append(name)
        elif isinstance(value, type) and issubclass(value, Exception):
            sections["Errors"].append(name)
        elif not isinstance(value, str):
            sections["Types"].append(name)
    return "\n".join(line for heading, names in sections.items()
                     for line in (f"## {heading}\n", *(f"::: halfbyte.{name}\n" for name in names)))  # fmt: skip
