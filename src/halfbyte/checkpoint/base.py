"""What every kind of checkpoint offers: configuration, tensors by logical name, checks before anything is read."""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.manifest import Manifest
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.formats import Format, Weight
from halfbyte.models.spec import ModelSpec
from halfbyte.text.files import TokenizerFiles

Progress = Callable[[str, int, int], None]
"""Called as progress(tensor name, bytes done, bytes in all)."""

DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Halfbyte's name of each safetensors dtype that holds plain numbers."""

_HASH_CHUNK = 1 << 24
_NAMED = 3
_SCORES = {"score.weight", "classifier.weight", "v_head.summary.weight"}


class Checkpoint(ABC):
    """An open model; a `WeightSource`.

    Args:
        path: The folder or file.
        config, generation_config: Contents of these JSON files; the latter empty when there is none.
        manifest: What `halfbyte.json` says, if it is Halfbyte's own folder.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        manifest: Manifest | None = None,
    ) -> None:
        self.path, self.config, self.generation_config, self.manifest = path, config, generation_config, manifest
        self._unused = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it is read; complete after `check`."""
        return (self._unused,) if self._unused else ()

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""

    @abstractmethod
    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in.

        Raises:
            InvalidModelError: There is no such tensor.
            UnsupportedModelError: It is stored in a way Halfbyte cannot compute with.
        """

    @abstractmethod
    def weight(self, name: str) -> Weight:
        """A tensor; its parts are read-only views of the memory map where they can be. Raises as `format` does."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""

    @abstractmethod
    def tokenizer_files(self) -> TokenizerFiles:
        """What it says about the tokenizer, for `text.Tokenizer`. Raises as `read_tokenizer_files` does."""

    @abstractmethod
    def settings(self) -> dict[str, bytes]:
        """Contents of the configuration and tokenizer files of a model folder, by name."""

    def check(self, spec: ModelSpec) -> None:
        """Compare names, shapes and formats with what the model needs; tensors that it does not need become a note.

        Raises:
            InvalidModelError: A tensor is missing or has another shape; the first one is named.
            UnsupportedModelError: A tensor is stored in a way Halfbyte cannot compute with, or the model is of
                another kind: without an output matrix, a classifier.
        """
        shapes = self.shapes
        ignored = re.compile("|".join(f"(?:{pattern})" for pattern in spec.ignored) or r"(?!)")
        missing = [name for name in spec.shapes if name not in shapes]
        wrong = [name for name, shape in spec.shapes.items() if shapes.get(name, shape) != shape]
        if missing:
            self._refuse_missing(spec, missing)
        if wrong:
            have, need = list(shapes[wrong[0]]), list(spec.shapes[wrong[0]])
            self._reject(f"the tensor {shown(wrong[0])} has the shape {have}; config.json asks for {need}", wrong)
        for name in spec.shapes:
            self.format(name)
        self._found_unused(spec, [name for name in shapes if name not in spec.shapes and not ignored.fullmatch(name)])

    def verify(self, progress: Progress | None = None) -> None:
        """Compute the SHA-256 of every tensor and compare it with the manifest; nothing to do without one.

        Raises:
            InvalidModelError: The bytes of a tensor are not those that were written.
        """
        records = {} if self.manifest is None else self.manifest.tensors
        done, total = 0, self.nbytes
        for name, record in records.items():
            weight = self.weight(name)
            if _sha256(weight) != record.sha256:
                damaged(self.path, f"the bytes of the tensor {shown(name)} are not those its SHA-256 stands for")
            self.release(name)
            done += weight.nbytes
            if progress is not None:
                progress(name, done, total)

    def _found_unused(self, spec: ModelSpec, names: Sequence[str]) -> None:
        """What to do about tensors that the model does not have."""
        if names:
            some = ", ".join(map(shown, names[:_NAMED])) + (", …" if names[_NAMED:] else "")
            count = "1 tensor that is" if len(names) == 1 else f"{len(names)} tensors that are"
            self._unused = f"It holds {count} not part of a {spec.model_type} model and not used: {some}."

    def _lacks(self, name: str) -> str:
        """What to say about a tensor that is not there."""
        return f"it lacks the tensor {shown(name)}"

    def _refuse_missing(self, spec: ModelSpec, missing: Sequence[str]) -> NoReturn:
        kinds = self.config.get("architectures")
        kind = kinds[0] if isinstance(kinds, list) and kinds and isinstance(kinds[0], str) else ""
        classifies = re.search(r"For\w*(Classification|QuestionAnswering|Reward)", kind) or _SCORES & set(self.shapes)
        without_prefix = spec.embed.removeprefix("model.") in self.shapes and spec.embed not in self.shapes
        if classifies or without_prefix or missing == [spec.lm_head]:
            what = "a classifier" if classifies else "a base model without an output matrix"
            lacking = spec.lm_head if spec.lm_head in missing else missing[0]
            raise UnsupportedModelError(
                f"{self.path} is {what}{f' ({kind})' if kind else ''}, not a model that writes text: "
                f"it has no {lacking}.",
                "Use the language model itself, whose config.json names an architecture that ends with ForCausalLM.",
            )
        self._reject(self._lacks(missing[0]), missing)

    def _reject(self, what: str, names: Sequence[str]) -> NoReturn:
        others = f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""
        raise InvalidModelError(
            f"{self.path} does not fit its config.json: {what}{others}.",
            "Weights and config.json must come from the same model; download it again.",
        )


def _sha256(weight: Weight) -> str:
    """SHA-256 of a tensor's parts, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in weight.parts.values():
        flat = part.reshape(-1)
        step = max(1, _HASH_CHUNK // max(1, part.itemsize))
        for start in range(0, math.prod(part.shape), step):
            digest.update(flat[start : start + step].tobytes())
    return digest.hexdigest()
