"""transformers and torch in bfloat16, eager, with the default cache."""

from __future__ import annotations

import copy
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache


class Engine:
    """A Hugging Face folder."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._held: tuple[list[int], Any] | None = None
        self.versions = {name: version(name) for name in ("torch", "transformers")}
        self.settings = {"dtype": "bfloat16", "attention": str(self._model.config._attn_implementation)}

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        row, _ = self._step(ids, self._empty())
        return row.float().numpy()

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> float:
        start = time.perf_counter()
        row, _ = self._step(ids, self._empty())
        row.argmax().item()
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, ids: list[int], tokens: int) -> float:
        if self._held is None or self._held[0] != ids:
            self._held = ids, self._step(ids, self._empty())
        row, cache = copy.deepcopy(self._held[1])
        token = int(row.argmax())
        start = time.perf_counter()
        for _ in range(tokens):
            row, cache = self._step([token], cache)
            token = int(row.argmax())
        return time.perf_counter() - start

    def _empty(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def _step(self, ids: list[int], cache: Any) -> tuple[torch.Tensor, Any]:
        """The last token's logits, and the cache after it."""
        out = self._model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1], out.past_key_values
