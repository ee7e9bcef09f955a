"""How much each input channel of a matrix matters: the mean of its squares over calibration text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.models.spec import ModelSpec
from halfbyte.plan.ops import Linear
from halfbyte.quantization.forward import Forward, names_of
from halfbyte.quantization.grid import Array
from halfbyte.quantization.layerwise import read


def importance(
    checkpoint: Checkpoint, spec: ModelSpec, ids: NDArray[np.int32], tick: Callable[[str, int, int], None]
) -> dict[str, Array]:
    """Mean x² of the inputs `[columns]` of every matrix of the decoder layers (llama.cpp's "importance matrix").

    Args:
        ids: Calibration texts `[texts, tokens]`.
        tick: Called as tick(what, layers done, layers in all).
    """
    forward = Forward(spec, checkpoint.format, ids.shape[1])
    table = checkpoint.weight(spec.embed)
    streams = list(forward.begin(ids, table.format, table.parts))
    found: dict[str, Array] = {}
    for done, steps in enumerate(forward.layers):
        tick(f"importance in layer {done + 1}", done, len(forward.layers))
        weights = {name: read(checkpoint, name) for name in names_of(steps, spec)}
        products = [step for step in steps if isinstance(step, Linear)]
        squares: dict[str, Array] = {}
        for text, stream in enumerate(streams):
            values = forward.enter(steps, stream)
            streams[text] = forward.advance(steps, values, weights.__getitem__)
            for x in {step.x for step in products}:
                squares[x] = squares.get(x, np.float32(0)) + np.square(values[x]).mean(axis=0) / len(streams)
        found |= {name: squares[step.x] for step in products for name in step.weights}
    return found
