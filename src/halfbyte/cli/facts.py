"""What `list`, `show` and `verify` say about a model, in one form for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.checkpoint.base import Checkpoint
    from halfbyte.models.spec import ModelSpec

POCKET = "pocket"
"""The name of the model that comes with the package."""


@dataclass(frozen=True)
class ModelFacts:
    """A model on this machine. Sizes that follow from its architecture are None if Halfbyte cannot run that.

    Attributes:
        id: By what it was asked for, or can be.
        path: The folder or GGUF file.
        revision: The commit, of a model that was downloaded.
        architecture: As `model_type` in `config.json`.
        parameters: How many weights.
        bytes: Of the weights, as stored.
        formats: The number of tensors in each format.
        quality: What was measured of it.
        license: The path of its licence, where that is beside it.
    """

    id: str
    path: str
    revision: str | None
    architecture: str
    bytes: int
    formats: Mapping[str, int]
    quality: Mapping[str, Any]
    license: str | None
    parameters: int | None = None
    layers: int | None = None
    hidden_size: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    bits_per_weight: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Labels and values for a person."""
        formats = ", ".join(f"{count} tensors in {name}" for name, count in self.formats.items())
        bits = "" if self.bits_per_weight is None else f", {self.bits_per_weight:g} bits per weight"
        return [
            ("path", self.path),
            *([("revision", self.revision)] if self.revision else []),
            ("architecture", self.architecture),
            *(self._sizes() if self.parameters is not None else []),
            ("weights", f"{size(self.bytes)}{bits}"),
            ("formats", formats),
            *(line for name, figures in self.quality.items() for line in _quality(name, figures)),
            *([("licence", self.license)] if self.license else []),
        ]

    def _sizes(self) -> list[tuple[str, str]]:
        return [
            ("parameters", f"{self.parameters:,}"),
            ("layers", f"{self.layers}, with a hidden size of {self.hidden_size:,}"),
            ("heads", f"{self.heads} query and {self.kv_heads} key/value heads of size {self.head_dim}"),
            ("vocabulary", f"{self.vocabulary:,} tokens"),
            ("context", f"{self.context:,} tokens"),
        ]


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter on this machine.

    Attributes:
        base: The model that it says it was trained on.
        rank: The largest of its updates.
        targets: The last names of the modules that it changes.
        bytes: Of its tensors, as stored.
    """

    path: str
    base: str
    method: str
    rank: int
    targets: tuple[str, ...]
    parameters: int
    bytes: int

    def lines(self) -> list[tuple[str, str]]:
        """Labels and values for a person."""
        return [
            ("path", self.path),
            ("kind", f"{self.method} adapter of rank {self.rank}"),
            *([("trained on", self.base)] if self.base else []),
            ("changes", ", ".join(self.targets)),
            ("parameters", f"{self.parameters:,}"),
            ("weights", size(self.bytes)),
        ]


def adapter_facts(path: Path) -> AdapterFacts:
    """The facts about an adapter. Raises as `AdapterFolder`."""
    from halfbyte.checkpoint.adapter import AdapterFolder

    found = AdapterFolder(path)
    method = "DoRA" if found.dora else "LoRA"
    return AdapterFacts(str(path), found.base, method, found.rank, found.targets, found.parameters, found.nbytes)


def facts_of(name: str, checkpoint: Checkpoint, spec: ModelSpec | None) -> ModelFacts:
    """The facts about an open model. Raises as `Checkpoint.format` does."""
    from halfbyte.checkpoint.hub import commit_of

    shapes = checkpoint.shapes if spec is None else spec.shapes
    formats = {tensor: checkpoint.format(tensor) for tensor in shapes}
    nbytes = sum(formats[tensor].nbytes(shape) for tensor, shape in shapes.items())
    licence = next(iter(sorted(checkpoint.path.glob("LICEN[SC]E*"))), None)
    return ModelFacts(
        id=name,
        path=str(checkpoint.path),
        revision=commit_of(checkpoint.path),
        architecture=str(checkpoint.config.get("model_type", "")),
        bytes=nbytes,
        formats=dict(Counter(form.name for form in formats.values()).most_common()),
        quality=dict(checkpoint.manifest.quality) if checkpoint.manifest else {},
        license=str(licence) if licence else None,
        **({} if spec is None else _sizes(spec, nbytes)),
    )


def _sizes(spec: ModelSpec, nbytes: int) -> dict[str, Any]:
    attention = spec.attentions[0]
    return {
        "parameters": spec.parameters,
        "layers": len(spec.layers),
        "hidden_size": spec.hidden_size,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocabulary": spec.vocab_size,
        "context": spec.context,
        "bits_per_weight": round(8 * nbytes / spec.parameters, 3),
    }


def facts_of_path(name: str, path: Path) -> ModelFacts:
    """The facts about a model, also one of an architecture that Halfbyte cannot run. Raises as `open_checkpoint`."""
    from halfbyte.checkpoint.open import open_checkpoint
    from halfbyte.errors import HalfbyteError
    from halfbyte.models import build_spec

    checkpoint = open_checkpoint(path)
    try:
        spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes.keys())
    except HalfbyteError:
        spec = None
    return facts_of(name, checkpoint, spec)


def _quality(name: str, figures: Any) -> list[tuple[str, str]]:
    """What was measured, a line per figure."""
    from halfbyte.evaluation.labels import labelled

    values = labelled(figures) if isinstance(figures, dict) else [("", str(figures))]
    return [(name.replace("_", " "), f"{label}: {value}".removeprefix(": ")) for label, value in values]
