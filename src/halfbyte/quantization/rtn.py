"""Round to nearest: each group of weights by itself, without looking at what the model does with them."""

from __future__ import annotations

import numpy as np

from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.errors import InvalidModelError
from halfbyte.formats import Parts
from halfbyte.quantization.grid import fit, is_grouped, pack_rows


def clipped(packed: RepackedWeights, name: str) -> Parts:
    """A tensor's parts with the ranges of its groups chosen for the least squared error.

    Raises:
        InvalidModelError: It holds NaN or infinity.
    """
    form = packed.format(name)
    if not is_grouped(form):
        return packed.weight(name).parts
    weight = packed.checkpoint.weight(name)

    def encode(rows: slice) -> Parts:
        some = {suffix: part[rows] for suffix, part in weight.parts.items()}
        values = weight.format.decode(some, (len(range(weight.shape[0])[rows]), weight.shape[1]))
        packed.release(name)
        if not np.isfinite(values).all():
            raise InvalidModelError(f"The tensor {name!r} holds NaN or infinity.", "Download the checkpoint again.")
        grid = fit(values, form)
        return form.from_codes(grid.codes(values), grid.scale, grid.zero)

    return pack_rows(form, weight.shape, encode)
