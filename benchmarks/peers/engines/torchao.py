"""torchao's int4 weights, groups of 32, in transformers with torch; embeddings stay in bfloat16."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torchao.quantization import Int4WeightOnlyConfig, quantize_

from benchmarks.peers.engines import transformers


class Engine(transformers.Engine):
    """A Hugging Face folder, its matrices packed once it is loaded."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        super().__init__(path, threads, context)
        packing = "opaque"
        with torch.inference_mode():
            quantize_(self._model, Int4WeightOnlyConfig(group_size=32, int4_packing_format=packing))
        self.versions["torchao"] = version("torchao")
        self.settings["int4_packing_format"] = packing
