"""What is measured: a stored model, or random weights in the shapes of one, and how it is to run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from halfbyte.checkpoint.folder import open_checkpoint
from halfbyte.checkpoint.foreign import Runnable
from halfbyte.checkpoint.packed import Packed
from halfbyte.devices import Progress, prepare, tune
from halfbyte.formats import Format, WeightSource
from halfbyte.models import build_spec
from halfbyte.models.catalog import catalog_config, catalog_spec
from halfbyte.models.spec import Layer, ModelSpec
from halfbyte.plan import Executor, Plan

SMALL_NBYTES = 64_000_000
"""Weights of at most so many bytes are checked whole; of larger models, a few layers."""

_CUT_VOCABULARY = 4096
_CHUNK = 1 << 22


class FormattedSource(WeightSource, Protocol):
    """A `WeightSource` that knows each tensor's format before it is read."""

    def format(self, name: str) -> Format:
        """The format of a tensor."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a model is run, and how often.

    Attributes:
        device: `cpu`, `gpu` or `reference`.
        gpu: Which GPU, for device `gpu`; the first real one if None.
        weights: Format that matrices are packed into while loading; None leaves them as they are.
        kernels: An instruction set of the CPU's, or `no NAME`: all kernels of the GPU's but those of a kind.
        variant: In words what is different about these settings, where several are measured side by side.
        each_token: Whether device `gpu` hands each token back before it begins the next.
    """

    device: str = "cpu"
    threads: int | None = None
    activations: str | None = None
    weights: str | None = None
    kv_dtype: str = "f16"
    repeat: int = 5
    warm_up: int = 1
    gpu: int | None = None
    each_token: bool = False
    kernels: str | None = None
    variant: str = ""


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
        """A plan of its own size and what runs it, as `halfbyte.load` makes them; see `tune`.

        Raises:
            DeviceError: There is no such device, or it is too small.
            UsageError: A context out of range, or an option that the device has not.
        """
        return prepare(
            settings.device, self.spec, self.source, context=context, sequences=sequences, rows=max(8, sequences),
            kv_dtype=settings.kv_dtype, threads=settings.threads, activations=settings.activations, gpu=settings.gpu,
            kernels=settings.kernels, tuned=True, progress=progress,
        )  # fmt: skip

    def tune(self, settings: Settings) -> None:
        """Tune a GPU for the whole model, if it never met it: before anything is checked or timed."""
        if settings.device == "gpu":
            tune(
                self.spec, self.source.format, gpu=settings.gpu, kv_dtype=settings.kv_dtype,
                activations=settings.activations,
            )  # fmt: skip

    def cut(self) -> Subject:
        """The same kernels at work on less: a layer of each kind; all of a small model."""
        if self.nbytes <= SMALL_NBYTES:
            return self
        spec = replace(self.spec, layers=_one_of_each(self.spec.layers))
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
    model: str | None, *, revision: str | None = None, offline: bool = False, weights: str | None = None
) -> Subject:
    """A model as `load` takes it. Raises what `load` raises."""
    from halfbyte.model import locate

    started = time.perf_counter()
    path = locate(model, revision, offline)
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    source = Runnable(Packed(checkpoint, weights) if weights else checkpoint)
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


def let_go(executor: Executor) -> None:
    """Free what an executor has on a GPU."""
    if close := getattr(executor, "close", None):
        close()


def _random_weights(spec: ModelSpec, weights: str) -> FormattedSource:
    from halfbyte.synthetic import SyntheticWeights

    return SyntheticWeights(spec, weights)


def _one_of_each(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The first two layers, and the first with any other kind of attention."""
    firsts = {layer.attention: layer for layer in reversed(layers)}
    return tuple(layer for i, layer in enumerate(layers) if i < 2 or firsts[layer.attention] is layer)


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
