"""A checkpoint as executors take it: formats that none of them computes with are turned into others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.packed import TensorSource
from halfbyte.formats import Format, Parts, Weight, get_format
from halfbyte.formats.ggml import BLOCKS, BlockFormat
from halfbyte.formats.q4g import Q4G
from halfbyte.formats.q8g import Q8G

_CHUNK_VALUES = 1 << 20


class ExecutableWeights:
    """A `WeightSource` in the formats that executors compute with; others are turned into them without loss.

    Args:
        checkpoint: Where the tensors come from.
    """

    def __init__(self, checkpoint: TensorSource) -> None:
        self.checkpoint = checkpoint

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return self.checkpoint.shapes

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: formats that are turned into others, the most frequent first."""
        turned: dict[tuple[str, str], int] = {}
        for name in self.shapes:
            pair = self.checkpoint.format(name).name, self.format(name).name
            if pair[0] != pair[1]:
                turned[pair] = turned.get(pair, 0) + 1
        ordered = sorted(turned.items(), key=lambda item: -item[1])
        return tuple(f"{count} matrices in {stored} run as {runs}." for (stored, runs), count in ordered)

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        stored = self.checkpoint.format(name)
        return get_format(stored.grouped) if isinstance(stored, BlockFormat) and stored.grouped else stored

    def weight(self, name: str) -> Weight:
        """A tensor in its format. Raises as `Checkpoint.weight` does."""
        weight = self.checkpoint.weight(name)
        return regrouped(weight, lambda: self.checkpoint.release(name)) or weight

    def release(self, name: str) -> None:
        """Give back the memory map's pages of a tensor."""
        self.checkpoint.release(name)


def regrouped(weight: Weight, release: Callable[[], None] = lambda: None) -> Weight | None:
    """A matrix of one of ggml's formats in Halfbyte's groups of 32, where executors take it so; None for other formats.

    It is made a few rows at a time; `release` is called after each.
    """
    stored = weight.format
    if not isinstance(stored, BlockFormat) or not stored.grouped or stored.group_parts is None:
        return None
    form, (rows, columns) = get_format(stored.grouped), weight.shape
    shapes = {suffix: shape for suffix, (_, shape) in form.layout(weight.shape).items()}
    parts: Parts = {".q": np.empty(shapes[".q"], np.uint8), ".scale": np.empty(shapes[".scale"], np.float16)}
    step = max(1, _CHUNK_VALUES // max(1, columns))
    for start in range(0, rows, step):
        chunk = np.ascontiguousarray(weight.parts[BLOCKS][start : start + step]).view(np.uint8)
        codes, scales = stored.group_parts(chunk.reshape(-1, stored.block_bytes))
        parts[".q"][start : start + step] = codes.reshape(len(chunk), -1)
        parts[".scale"][start : start + step] = scales.reshape(len(chunk), -1)
        release()
    return Weight(form, weight.shape, parts)


def block_format(stored: Format) -> str:
    """The format of ggml's that holds the codes of Halfbyte's groups; the name of any other format."""
    match stored:
        case Q4G(zero_points=zero_points):
            return "q4_1" if zero_points else "q4_0"
        case Q8G():
            return "q8_0"
    return stored.name


def ungrouped(weight: Weight, form: BlockFormat) -> tuple[Weight, int] | None:
    """A matrix in Halfbyte's groups in the blocks of ggml's that hold its codes, and how many were rounded.

    A group becomes one block or several, bit for bit; but the offset -s·z of `q4_1` is rounded to float16.
    """
    stored, (rows, columns) = weight.format, weight.shape
    if not isinstance(stored, Q4G | Q8G) or block_format(stored) != form.name or columns % form.values:
        return None
    blocks = columns // form.values

    def of_blocks(groups: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(groups, stored.group // form.values, axis=1)[:, :blocks, None]

    scale, rounded = of_blocks(weight.parts[".scale"]), 0
    codes = np.ascontiguousarray(weight.parts[".q"]).view(np.uint8)
    codes = codes.reshape(rows, -1, form.values * stored.bits // 8)[:, :blocks]
    fields = [scale]
    if isinstance(stored, Q4G) and stored.zero_points:
        zeros = stored.zeros(weight.parts, rows, stored.groups(columns))
        exact = -scale.astype(np.float32) * of_blocks(zeros)
        offset = exact.astype(np.float16)
        rounded = int(np.count_nonzero(offset != exact))
        fields.append(offset)
    halves = [np.ascontiguousarray(field).view(np.uint8) for field in fields]
    return Weight(form, weight.shape, {BLOCKS: np.concatenate([*halves, codes], axis=-1).reshape(rows, -1)}), rounded
