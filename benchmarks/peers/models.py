"""One synthetic model in the files that each engine reads, all with the same numbers.

    halfbyte       Halfbyte's own folder, q4g32: what the others are made from
    gguf           Q4_0, the same codes and scales bit for bit
    hugging_face   scale · (code - 8) in bfloat16, which holds it exactly

Files are made once and kept under `.cache/peers/models`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.catalog import Peer
from benchmarks.peers.environment import CACHE, run
from benchmarks.synthetic import synthetic_config, synthetic_spec, write_synthetic
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.formats.dense import f32_to_bf16
from halfbyte.models.spec import ModelSpec
from halfbyte.text.files import read_tokenizer_files

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


@dataclass(frozen=True)
class SyntheticModel:
    """A catalog model's shape with random weights.

    Attributes:
        layers: Its layers, if not all.
        vocabulary: Its vocabulary, if not its own.
        cache: The folder its files are kept in.
    """

    name: str
    layers: int | None = None
    vocabulary: int | None = None
    cache: Path = CACHE / "models"

    @property
    def spec(self) -> ModelSpec:
        """Its shapes."""
        return synthetic_spec(synthetic_config(self.name, layers=self.layers, vocabulary=self.vocabulary))

    @property
    def folder(self) -> Path:
        """Where its files are."""
        parts = [self.name, f"{self.layers}-layers" if self.layers else "", str(self.vocabulary or "")]
        return self.cache / "-".join(part for part in parts if part)

    def source(self, kind: str) -> Path:
        """The files of one kind of `SOURCES`, made if they are not there."""
        path = self.folder / (f"{kind}.gguf" if kind == "gguf" else kind)
        return _made(path, lambda partial: SOURCES[kind](self, partial))

    def files(self, peer: Peer, python: str) -> Path:
        """What a peer reads, converted by its own tools where it cannot read a source.

        Raises:
            PeerError: Its tools failed.
        """
        source = self.source(peer.reads)
        if not peer.convert:
            return source
        log = self.folder / f"{peer.engine}-convert.log"

        def convert(partial: Path) -> None:
            run([python, *(part.format(source=source, target=partial) for part in peer.convert)], log)

        return _made(self.folder / peer.engine, convert)


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """The path, complete: it takes its name when `make` is done."""
    if not path.exists():
        partial = path.with_name(f"partial-{path.name}")
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        make(partial)
        partial.rename(path)
    return path


def _write_halfbyte(model: SyntheticModel, target: Path) -> None:
    config = synthetic_config(model.name, layers=model.layers, vocabulary=model.vocabulary)
    write_synthetic(target, config, source=model.name)


def _write_gguf(model: SyntheticModel, target: Path) -> None:
    folder = model.source("halfbyte")
    checkpoint = open_checkpoint(folder)
    write_gguf(target, checkpoint, model.spec, read_tokenizer_files(folder), kind="stored", name=model.name)


def _write_hugging_face(model: SyntheticModel, target: Path) -> None:
    """The checkpoint decoded to bfloat16."""
    folder = model.source("halfbyte")
    checkpoint = open_checkpoint(folder)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(_hugging_face_config(checkpoint.config)))
    for file in folder.glob("tokenizer*.json"):
        shutil.copy(file, target)
    _write_safetensors(target / "model.safetensors", checkpoint)


def _hugging_face_config(config: dict[str, Any]) -> dict[str, Any]:
    """With what published configurations also say, and converters look for.

    What a family takes for padding and the end of a text, unless told otherwise, may be outside another vocabulary.
    """
    more: dict[str, Any] = {"architectures": [_ARCHITECTURES[config["model_type"]]], "dtype": "bfloat16"}
    more["pad_token_id"] = None
    if scaling := config.get("rope_scaling"):
        more["rope_scaling"] = {**scaling, "type": scaling["rope_type"]}
    return {"eos_token_id": 0, **config, **more}


def _write_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Every tensor in bfloat16, one at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in checkpoint.shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in checkpoint.shapes:
            file.write(f32_to_bf16(checkpoint.weight(name).decode()).tobytes())
            checkpoint.release(name)


SOURCES: dict[str, Callable[[SyntheticModel, Path], None]] = {
    "halfbyte": _write_halfbyte,
    "gguf": _write_gguf,
    "hugging_face": _write_hugging_face,
}
