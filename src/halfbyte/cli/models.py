"""`halfbyte models`: list, download, show and remove models."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.command import Command, Group
from halfbyte.cli.output import note, print_json, print_pairs, print_table
from halfbyte.errors import UsageError
from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.checkpoint.base import Checkpoint
    from halfbyte.models.spec import ModelSpec

Repo = Annotated[str, typer.Argument(metavar="ID", help="Hugging Face id, such as meta-llama/Llama-3.2-1B-Instruct.")]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Model folder, GGUF file or Hugging Face id.", show_default="the pocket model"
    ),
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="main")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

app = typer.Typer(cls=Group, rich_markup_mode=None, help="List, download, show and remove models.")


@app.command("list", cls=Command)
def list_models(json: opt.Json = False) -> None:
    """List downloaded models."""
    from halfbyte.checkpoint.hub import installed

    models = installed()
    if json:
        print_json([asdict(model) | {"path": str(model.path)} for model in models], indent=2)
    elif models:
        rows = [(m.repo, m.revision[:12], size(m.nbytes), m.model_type, " ".join(m.formats)) for m in models]
        print_table(("ID", "REVISION", "SIZE", "ARCHITECTURE", "FORMATS"), rows)
    else:
        note("no models are downloaded; the pocket model comes with the package.")


@app.command(cls=Command)
def pull(repo: Repo, revision: Revision = None) -> None:
    """Download a model, or the files of it that are missing."""
    from halfbyte.checkpoint.hub import pull

    print(pull(repo, revision=revision))


@app.command(cls=Command)
def remove(repo: Repo, yes: Yes = False) -> None:
    """Delete a downloaded model.

    The Hugging Face cache is shared: other programs lose the model too.
    """
    from halfbyte.checkpoint.hub import cached, remove

    cached(repo)
    if not yes and not _confirmed(f"Delete all downloaded revisions of {repo}?"):
        note("nothing was removed.")
        raise typer.Exit(1)
    note(f"{repo} is removed: {size(remove(repo))} freed.")


def _confirmed(question: str) -> bool:
    """The answer to a question on the terminal.

    Raises:
        UsageError: Standard input has no answer.
    """
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        raise UsageError("standard input ended without an answer.", "Pass --yes to skip the question.") from error


@app.command(cls=Command)
def show(model: Name = None, revision: Revision = None, json: opt.Json = False) -> None:
    """Show a model's size, formats, quality and licence."""
    from halfbyte.cli.folder import open_model

    facts = describe(*open_model(model, revision=revision, offline=True))
    if json:
        print_json(facts, indent=2)
    else:
        print_pairs(list(_lines(facts)))


def describe(checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, Any]:
    """The facts about a model: sizes in bytes, formats as the number of tensors stored in each."""
    first = spec.layers[0].attention
    formats = Counter(checkpoint.format(name).name for name in spec.shapes)
    nbytes = sum(checkpoint.format(name).nbytes(shape) for name, shape in spec.shapes.items())
    licence = next((path for path in sorted(checkpoint.path.glob("LICEN[SC]E*"))), None)
    return {
        "path": str(checkpoint.path),
        "architecture": spec.model_type,
        "parameters": spec.parameters,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "heads": first.heads,
        "kv_heads": first.kv_heads,
        "head_dim": first.head_dim,
        "vocabulary": spec.vocab_size,
        "context": spec.context,
        "bytes": nbytes,
        "bits_per_weight": round(8 * nbytes / spec.parameters, 3),
        "formats": dict(formats.most_common()),
        "quality": dict(checkpoint.manifest.quality) if checkpoint.manifest else {},
        "license": str(licence) if licence else None,
    }


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    formats = ", ".join(f"{count} tensors in {name}" for name, count in facts["formats"].items())
    return [
        ("path", facts["path"]),
        ("architecture", facts["architecture"]),
        ("parameters", f"{facts['parameters']:,}"),
        ("layers", f"{facts['layers']}, with a hidden size of {facts['hidden_size']:,}"),
        (
            "heads",
            f"{facts['heads']} query and {facts['kv_heads']} key/value heads of size {facts['head_dim']}",
        ),
        ("vocabulary", f"{facts['vocabulary']:,} tokens"),
        ("context", f"{facts['context']:,} tokens"),
        ("weights", f"{size(facts['bytes'])}, {facts['bits_per_weight']:g} bits per weight"),
        ("formats", formats),
        *(("quality", f"{name}: {_figures(value)}") for name, value in facts["quality"].items()),
        *([("licence", facts["license"])] if facts["license"] else []),
    ]


def _figures(value: Any) -> str:
    """Measured figures as text; those of an object as `name value, name value`, without hashes."""
    if isinstance(value, dict):
        shown = {name: figure for name, figure in value.items() if not name.endswith("_sha256")}
        return ", ".join(f"{name} {_figures(figure)}" for name, figure in shown.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
