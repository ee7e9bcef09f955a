"""torchao's int4 weights in groups of 32, in transformers with torch; the embedding table stays in bfloat16."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torchao.quantization.linear_quant_modules import Int4WeightOnlyQuantizer

from benchmarks.peers.engines import transformers

TILES = 2


class Engine(transformers.Engine):
    """A Hugging Face folder, its matrices packed for torch's CPU kernel once it is loaded."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        super().__init__(path, threads, context)
        quantizer = Int4WeightOnlyQuantizer(32, inner_k_tiles=TILES, device=torch.device("cpu"))
        self._model = quantizer.quantize(self._model)
        self.versions["torchao"] = version("torchao")
        self.settings["kernel"] = "_weight_int4pack_mm_for_cpu"
