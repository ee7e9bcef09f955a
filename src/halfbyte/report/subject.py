"""What is measured: a stored model, or random weights in the shapes of one, and how it is to run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.executors import Progress
from halfbyte.models import build_spec
from halfbyte.models.catalog import catalog_config, catalog_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.options import RunOptions
from halfbyte.placement import FormattedSource, place
from halfbyte.plan import Executor, Plan

SMALL_NBYTES = 64_000_000
"""Weights of at most so many bytes are checked whole; of larger models, a few layers."""

_CUT_VOCABULARY = 4096
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Settings:
    """How a model is run, and how often.

    Attributes:
        run: How it is run; the device is not `auto`.
        each_token: Whether a device that chooses tokens itself hands each back before it begins the next.
        variant: In words what is different about these settings, where several are measured side by side.
    """

    run: RunOptions = field(default_factory=lambda: RunOptions("cpu"))
    repeat: int = 5
    warm_up: int = 1
    each_token: bool = False
    variant: str = ""

    def record(self, *, threads: int) -> dict[str, Any]:
        """The settings as a record keeps them, in one level, with the threads that were used."""
        mine = {name: value for name, value in vars(self).items() if name != "run"}
        return {**asdict(self.run), **mine, "threads": threads}


@dataclass(frozen=True)
class Subject:
    """A model whose weights have not been read yet.

    Attributes:
        about: Its name and kind, for the record; hashes come from `hashes`.
        path: Its folder or GGUF file; None where weights are random.
        opened_s: Seconds that reading its headers took.
    """

    name: str
    spec: ModelSpec
    source: FormattedSource
    about: Mapping[str, Any]
    path: Path | None
    opened_s: float

    def load(
        self, settings: Settings, *, context: int, sequences: int, progress: Progress | None = None
    ) -> tuple[Plan, Executor]:
        """A plan of so many positions and sequences, and what runs it, as `halfbyte.load` makes them.

        Raises:
            DeviceError: There is no such device, or it is too small.
            UsageError: A context out of range, or an option that the device has not.
        """
        options = replace(settings.run, context=context, sequences=sequences)
        return place(options, self.spec, self.source, progress=progress)

    def cut(self) -> Subject:
        """The same kernels at work on less: a layer of each kind; all of a small model."""
        if self.nbytes <= SMALL_NBYTES:
            return self
        spec = self.spec.one_of_each()
        if self.path is None:
            spec = _smaller_vocabulary(spec)
            return replace(self, spec=spec, source=_random_weights(spec, str(self.about["weights"])))
        return replace(self, spec=spec)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored on the device."""
        return sum(self.source.format(name).nbytes(shape) for name, shape in self.spec.shapes.items())

    def hashes(self) -> dict[str, str]:
        """SHA-256 of what defines it: `halfbyte.json`, which has the hash of each tensor, else every weight file."""
        if self.path is None:
            return {"config": hashlib.sha256(json.dumps(self.about["config"]).encode()).hexdigest()}
        if self.path.is_file():
            return {self.path.name: _sha256(self.path)}
        names = ["config.json", "halfbyte.json"]
        if not (self.path / "halfbyte.json").is_file():
            names = ["config.json", *sorted(file.name for file in self.path.glob("*.safetensors"))]
        return {name: _sha256(self.path / name) for name in names if (self.path / name).is_file()}


def stored(
    model: str | Path | None, *, revision: str | None = None, offline: bool = False, weights: str | None = None
) -> Subject:
    """A model as `load` takes it. Raises what `load` raises."""
    from halfbyte.model import locate

    started = time.perf_counter()
    path = locate(model, revision, offline)
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    source = ExecutableWeights(RepackedWeights(checkpoint, weights) if weights else checkpoint)
    name = str(model or "pocket")
    about = {"name": name, "synthetic": False, "revision": revision}
    return Subject(name, spec, source, about, path, time.perf_counter() - started)


def synthetic(name: str, *, layers: int | None = None, weights: str | None = None) -> Subject:
    """Random weights in the shapes of a model of the catalog, made while they are loaded.

    Raises:
        UsageError: The catalog has no such model.
        UnsupportedModelError: No format is called `weights`.
    """
    spec = catalog_spec(name, layers=layers)
    weights = weights or "q4g32"
    about = {"name": name, "synthetic": True, "weights": weights, "config": catalog_config(name, layers=layers)}
    return Subject(name, spec, _random_weights(spec, weights), about, None, 0.0)


def _random_weights(spec: ModelSpec, weights: str) -> FormattedSource:
    from halfbyte.synthetic import SyntheticWeights

    return SyntheticWeights(spec, weights)


def _smaller_vocabulary(spec: ModelSpec) -> ModelSpec:
    size = min(spec.vocab_size, _CUT_VOCABULARY)
    shapes = spec.shapes | dict.fromkeys((spec.embed, spec.lm_head), (size, spec.hidden_size))
    return replace(spec, vocab_size=size, shapes=shapes)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
