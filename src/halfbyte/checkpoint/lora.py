"""Weights with adapters: one merged into the matrices that it changes, or any number beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.adapter import Adapter
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.packed import TensorSource, is_packed, repack
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.spec import LORA_A, LORA_B, LORA_SCALES, Adapters


class MergedWeights:
    """A `WeightSource` over a checkpoint, with an adapter merged into its matrices.

    Sums are made in float32, a few rows at a time. Nothing is kept: asking twice merges twice.

    Args:
        checkpoint: Where the tensors come from.
        adapter: An adapter that fits it.
        rounded: Whether sums are rounded to the format that the matrix is stored in, as PEFT's `merge_and_unload` does;
            else they are float32, to be packed.

    Raises:
        UsageError: A matrix that the adapter changes is packed.
    """

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter, *, rounded: bool = True) -> None:
        self.checkpoint = checkpoint
        self.adapter = adapter
        self._rounded = rounded
        for name in adapter.matrices:
            form = checkpoint.format(name)
            if is_packed(form):
                raise UsageError(
                    f"{adapter.folder.path} cannot be merged into {name}, which is packed ({form.name}).",
                    "Merge it into the model in bf16, f16 or f32, or load it beside the packed weights, as one of the "
                    "adapters.",
                )

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return self.checkpoint.shapes

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        stored = self.checkpoint.format(name)
        return stored if self._rounded or name not in self.adapter.matrices else get_format("f32")

    def weight(self, name: str) -> Weight:
        """A tensor, changed if the adapter changes it.

        Raises:
            InvalidModelError: It holds NaN or infinity, or does not exist; or the adapter is damaged.
        """
        weight, update = self.checkpoint.weight(name), self.adapter.update(name)
        if update is None:
            return weight
        return repack(weight, self.format(name), name, lambda: self.checkpoint.release(name), update.apply)

    def release(self, name: str) -> None:
        """Give back the memory map's pages of a tensor."""
        self.checkpoint.release(name)


class AdaptedWeights:
    """A `WeightSource` with the tensors of adapters beside those of a model: those that `ops.LowRank` reads.

    A and B are f16. Each is first multiplied by the power of two that takes its largest value near the end of the range
    of f16, and the scale is divided by it: small values lose nothing then.

    Args:
        source: Where the model's tensors come from.
        adapters: Adapters that fit it, by name.

    Raises:
        UnsupportedModelError: An adapter uses DoRA.
    """

    def __init__(self, source: TensorSource, adapters: Mapping[str, Adapter]) -> None:
        self.source = source
        self._fitted = list(adapters.values())
        dora = next((adapter.folder for adapter in self._fitted if adapter.folder.dora), None)
        if dora is not None:
            raise UnsupportedModelError(
                f"{dora.path} uses DoRA (use_dora), which changes whole rows of the weights.",
                "Merge it into the weights instead (merge).",
            )
        matrices = frozenset(name for adapter in self._fitted for name in adapter.matrices)
        self.adapters = Adapters(tuple(adapters), matrices, max(adapter.rank for adapter in self._fitted))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor of the model, by logical name."""
        return self.source.shapes

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in."""
        matrix, suffix = _split(name)
        if matrix not in self.adapters.matrices:
            return self.source.format(name)
        return get_format("f32" if suffix == LORA_SCALES else "f16")

    def weight(self, name: str) -> Weight:
        """A tensor. Raises as `Checkpoint.weight` and `AdapterFolder.update` do."""
        matrix, suffix = _split(name)
        if matrix not in self.adapters.matrices:
            return self.source.weight(name)
        values = self._values(matrix, suffix)
        form = self.format(name)
        return Weight(form, values.shape, form.encode(values))

    def release(self, name: str) -> None:
        """Give back the memory map's pages of a tensor of the model."""
        if _split(name)[0] not in self.adapters.matrices:
            self.source.release(name)

    def _values(self, matrix: str, suffix: str) -> NDArray[np.float32]:
        rows, columns = self.shapes[matrix]
        count, rank = len(self._fitted), self.adapters.rank
        a, b = np.zeros((count, rank, columns), np.float32), np.zeros((count, rows, rank), np.float32)
        scales = np.zeros(count, np.float32)
        for k, adapter in enumerate(self._fitted):
            update = adapter.update(matrix)
            if update is not None:
                up_a, up_b = _raised(update.a), _raised(update.b)
                a[k, : len(update.a)] = np.ldexp(update.a, up_a)
                b[k, :, : len(update.a)] = np.ldexp(update.b, up_b)
                scales[k] = np.ldexp(update.scale, -up_a - up_b)
        found = {LORA_A: a.reshape(-1, columns), LORA_B: b.reshape(-1, rank), LORA_SCALES: scales}
        return found[suffix]


def _split(name: str) -> tuple[str, str]:
    """The matrix that a tensor of adapters belongs to, and which one it is; nothing for other tensors."""
    for suffix in (LORA_A, LORA_B, LORA_SCALES):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return "", ""


def _raised(values: NDArray[np.float32]) -> int:
    """The power of two that brings the largest of some values to between 2^14 and 2^15."""
    return 15 - int(np.frexp(np.abs(values).max(initial=0.0))[1])
