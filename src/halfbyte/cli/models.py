"""`halfbyte pull`, `list`, `show`, `verify` and `rm`: the models on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from halfbyte.cli import completion
from halfbyte.cli import options as opt
from halfbyte.cli.command import Command, Group
from halfbyte.cli.facts import POCKET, adapter_facts, facts_of, facts_of_path
from halfbyte.cli.output import note, print_json, print_pairs, print_table
from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.units import size

Repo = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Hugging Face id, or short name such as phi-4-mini; org/name:Q4_K_M is a GGUF file.",
        autocompletion=completion.short_names,
    ),
]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Model folder, GGUF file, Hugging Face id or short name.",
        show_default="the pocket model",
        autocompletion=completion.models,
    ),
]
Downloaded = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Hugging Face id, as list shows it; org/name is all of it.",
        autocompletion=completion.downloaded,
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="main")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def pull(repo: Repo, revision: Revision = None) -> None:
    """Download a model, or the files of it that are missing."""
    from halfbyte.checkpoint.hub import pull

    def pick(sizes: Mapping[str, int]) -> str:
        return _picked(repo, sizes)

    print(pull(repo, revision=revision, pick=pick if on_terminal() else None))


def list_models(json: opt.Json = False) -> None:
    """List the models on this machine."""
    from halfbyte.checkpoint.hub import installed
    from halfbyte.model import POCKET as FOLDER

    models = [facts_of_path(POCKET, FOLDER)]
    for model in installed():
        try:
            models.append(facts_of_path(model.id, model.path))
        except HalfbyteError as error:
            note(f"{model.id} cannot be opened: {error.message}")
    if json:
        print_json([model.to_json() for model in models], indent=2)
        return
    rows = [
        (
            model.id,
            model.revision[:8] if model.revision else "",
            size(model.bytes),
            "-" if model.bits_per_weight is None else f"{model.bits_per_weight:.3g}",
            model.architecture,
        )
        for model in models
    ]
    print_table(("ID", "REVISION", "SIZE", "BITS", "ARCHITECTURE"), rows, least_important=("ARCHITECTURE", "REVISION"))


def show(model: Name = None, revision: Revision = None, json: opt.Json = False) -> None:
    """Show a model's or an adapter's size, formats and quality."""
    from halfbyte.checkpoint.adapter import is_adapter
    from halfbyte.cli.folder import open_model

    if model is not None and is_adapter(folder := Path(model).expanduser()):
        adapter = adapter_facts(folder)
        print_json(asdict(adapter), indent=2) if json else print_pairs(adapter.lines())
        return
    facts = facts_of(model or POCKET, *open_model(model, revision=revision, offline=True))
    if json:
        print_json(facts.to_json(), indent=2)
    else:
        print_pairs(facts.lines())


def verify(model: Name = None, revision: Revision = None, json: opt.Json = False) -> None:
    """Compare a model's files with their checksums."""
    from halfbyte.checkpoint.verify import verify
    from halfbyte.cli.folder import model_folder
    from halfbyte.cli.progress import progress_bar

    path = model_folder(model, revision=revision, offline=True)
    with progress_bar() as progress:
        found = verify(path, progress)
    if json:
        print_json({"id": model or POCKET, "path": str(path), **asdict(found)}, indent=2)
        return
    counts = {"tensors": found.tensors, "files": found.files}
    right = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    if right:
        print(f"{model or POCKET} is intact: {right} have the right checksums ({size(found.nbytes)}).")
    else:
        print(f"{model or POCKET} has no checksums to compare with. Its headers are in order.")


def remove(repo: Downloaded, yes: Yes = False) -> None:
    """Delete a downloaded model, or one of its GGUF files.

    It is deleted from the Hugging Face cache, which other programs use too: they lose it as well.
    """
    from halfbyte.checkpoint.hub import removable, remove

    if repo == POCKET:
        raise UsageError("the pocket model is part of Halfbyte and cannot be removed.", "Name a downloaded model.")
    found = removable(repo)
    if not yes:
        note(f"{found.repository} is part of the Hugging Face cache: other programs that use this model lose it too.")
        revisions = "1 revision" if found.revisions == 1 else f"{found.revisions} revisions"
        if not _confirmed(f"Delete {found.id} ({revisions}, {size(found.nbytes)})?"):
            note("nothing was removed.")
            raise typer.Exit(1)
    remove(found)
    note(f"{found.id} is removed: {size(found.nbytes)} freed.")


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "pull": pull, "list": list_models, "show": show, "verify": verify, "rm": remove,
}  # fmt: skip
"""What there is on the top level, and under `models`."""

app = typer.Typer(cls=Group, rich_markup_mode=None, help="Download, list, show, verify and remove models.")
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command)(_command)
app.command("remove", cls=Command, hidden=True)(remove)


def on_terminal() -> bool:
    """Whether there is somebody to choose from a menu, and nothing takes what is printed."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _confirmed(question: str) -> bool:
    """The answer to a question on the terminal.

    Raises:
        UsageError: Standard input has no answer.
    """
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        raise UsageError("standard input ended without an answer.", "Pass --yes to skip the question.") from error


def _picked(repo: str, sizes: Mapping[str, int]) -> str:
    """The GGUF model that is chosen from a menu on the terminal."""
    from halfbyte.checkpoint.gguf.choice import PREFERRED

    names = sorted(sizes, key=lambda name: (sizes[name], name))
    print(f"{repo} has {len(names)} GGUF models:", file=sys.stderr)
    rows = [(str(number), name, size(sizes[name])) for number, name in enumerate(names, 1)]
    print_table(("#", "NAME", "SIZE"), rows, file=sys.stderr)

    def chosen(answer: str) -> str:
        if answer.isdecimal() and 0 < int(answer) <= len(names):
            return names[int(answer) - 1]
        found = next((name for name in names if name.lower() == answer.lower()), None)
        if found is None:
            raise typer.BadParameter(f"{answer!r} is not one of them.")
        return found

    default = PREFERRED if PREFERRED in sizes else None
    picked: str = typer.prompt("Which one (number or name)", default=default, value_proc=chosen, err=True)
    return picked
