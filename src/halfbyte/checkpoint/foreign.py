"""Model folders that another tool quantized (AutoAWQ, GPTQ, compressed-tensors), read in Halfbyte's formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.base import DENSE
from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.folder import Folder
from halfbyte.checkpoint.layouts.grouped import FALLBACK, Grouped, Scheme
from halfbyte.checkpoint.shards import Stored
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.spec import ModelSpec


class QuantizedCheckpoint(Folder):
    """A model folder that another tool quantized; a `WeightSource` in Halfbyte's formats."""

    def __init__(
        self, path: Path, config: dict[str, Any], generation_config: dict[str, Any], stored: Stored, scheme: Scheme
    ) -> None:
        super().__init__(path, config, generation_config, None, stored)
        self._scheme = scheme
        self._quantized = {base: self._shape_of(base) for base in self._bases()}
        self._plain = [name for name in self._files if not self._belongs(name)]
        self._formats: dict[str, Format] = {}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        quantized = {f"{base}.weight": shape for base, shape in self._quantized.items()}
        return {name: self._files[name].entries[name].shape for name in self._plain} | quantized

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: also matrices that could not stay packed."""
        unpacked = [base for base in self._quantized if self.format(f"{base}.weight").name == FALLBACK]
        if not unpacked:
            return super().notes
        held = f"{len(unpacked)} quantized matrices fit none of Halfbyte's formats and are held in {FALLBACK}."
        return (*super().notes, held)

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        if name not in self._formats:
            self._formats[name] = self._find_format(name)
        return self._formats[name]

    def weight(self, name: str) -> Weight:
        """A tensor: a view of the memory map if it is plain, else a copy in one of Halfbyte's formats."""
        form, base = self.format(name), name.removesuffix(".weight")
        if base in self._quantized:
            return self._read(base).weight()
        return Weight(form, self.shapes[name], {"": self._files[name].tensor(name)})

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""
        base = name.removesuffix(".weight")
        stored = [f"{base}.{suffix}" for suffix in self._scheme.suffixes] if base in self._quantized else [name]
        for part in stored:
            if part in self._files:
                self._files[part].release(part)

    def _find_format(self, name: str) -> Format:
        base = name.removesuffix(".weight")
        if base in self._quantized:
            return self._read(base).format
        if name not in self._plain:
            self._reject(self._lacks(name), [name])
        dtype = self._files[name].entries[name].dtype
        if dtype not in DENSE:
            raise UnsupportedModelError(
                f"{self.path}: tensor {shown(name)} is stored as {dtype}, which Halfbyte cannot compute with.",
                "Use a checkpoint in bf16, f16 or f32.",
            )
        return get_format(DENSE[dtype])

    def _bases(self) -> list[str]:
        marker = f".{self._scheme.marker}"
        return [name.removesuffix(marker) for name in self._files if name.endswith(marker)]

    def _belongs(self, name: str) -> bool:
        """Whether a stored tensor is a part of a quantized matrix."""
        base, _, suffix = name.rpartition(".")
        return base in self._quantized and suffix in self._scheme.suffixes

    def _found_unused(self, spec: ModelSpec, names: Sequence[str]) -> None:
        super()._found_unused(spec, [name for name in names if not self._is_empty_bias(name)])

    def _is_empty_bias(self, name: str) -> bool:
        """Whether this is the all-zero bias of a quantized matrix, which some tools store though the model has none."""
        if not name.endswith(".bias") or name.removesuffix(".bias") not in self._quantized:
            return False
        return not self._files[name].tensor(name).any()

    def _shape_of(self, base: str) -> tuple[int, int]:
        present = [suffix for suffix in self._scheme.suffixes if f"{base}.{suffix}" in self._files]
        lacking = [s for s in self._scheme.suffixes if s not in present and s not in self._scheme.optional]
        if lacking:
            damaged(self.path, f"{shown(base)} lacks {lacking[0]}")
        shapes = {s: self._files[f"{base}.{s}"].entries[f"{base}.{s}"].shape for s in present}
        try:
            return self._scheme.shape(shapes)
        except ValueError as error:
            damaged(self.path, f"the parts of {shown(base)} have contradictory shapes ({error})")

    def _read(self, base: str) -> Grouped:
        names = {suffix: f"{base}.{suffix}" for suffix in self._scheme.suffixes if f"{base}.{suffix}" in self._files}
        tensors = {suffix: self._files[name].tensor(name) for suffix, name in names.items()}
        try:
            return self._scheme.read(self._quantized[base], tensors)
        except ValueError as error:
            damaged(self.path, f"the parts of {shown(base)} contradict each other ({error})")
