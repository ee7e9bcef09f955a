"""Halfbyte through its public API, sampling and bookkeeping included."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

import halfbyte


class Engine:
    """A Halfbyte folder."""

    def __init__(self, path: str, threads: int | None, context: int, sequences: int = 1, device: str = "cpu") -> None:
        self._model = halfbyte.load(path, device, threads=threads, context=context, sequences=sequences)
        try:
            self.versions = {"halfbyte": version("halfbyte")}
        except PackageNotFoundError:
            self.versions = {"halfbyte": halfbyte.__version__}
        self.settings = {"cache": "f16", "sequences": str(sequences)}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        rows = [chunk[-1].copy() for chunk in self._model.engine.score(ids)]
        return rows[-1]

    def prefill(self, ids: list[int]) -> float:
        answer = self._model.generate(ids, max_tokens=1, ignore_eos=True)
        if answer.num_cached_tokens:
            raise RuntimeError(f"{answer.num_cached_tokens} tokens of the prompt were in the cache")
        return answer.prefill_ms / 1000

    def decode(self, ids: list[int], tokens: int) -> float:
        answer = self._model.generate(ids, max_tokens=tokens + 1, ignore_eos=True)
        if answer.ms_per_token is None or answer.new_tokens != tokens + 1:
            raise RuntimeError(f"{answer.new_tokens} tokens instead of {tokens + 1}")
        return answer.ms_per_token * tokens / 1000

    def batch(self, prompts: list[list[int]], tokens: int) -> float:
        start = time.perf_counter()
        answers = list(self._model.generate_many(prompts, max_tokens=tokens, ignore_eos=True))
        seconds = time.perf_counter() - start
        for answer in answers:
            new, cached = answer.new_tokens, answer.num_cached_tokens
            if cached or new != tokens:
                raise RuntimeError(f"{new} tokens instead of {tokens}, {cached} of the prompt in the cache")
        return seconds
