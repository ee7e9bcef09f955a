"""Halfbyte through its public API, sampling and bookkeeping included."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

import halfbyte


class Engine:
    """A Halfbyte folder."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self._model = halfbyte.load(path, "cpu", threads=threads, context=context)
        try:
            self.versions = {"halfbyte": version("halfbyte")}
        except PackageNotFoundError:
            self.versions = {"halfbyte": halfbyte.__version__}
        self.settings = {"cache": "f16"}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        rows = [chunk[-1].copy() for chunk in self._model.engine.score(ids)]
        return rows[-1]

    def prefill(self, ids: list[int]) -> float:
        answer = self._model.generate(ids, max_tokens=1, ignore_eos=True)
        if answer.reused_tokens:
            raise RuntimeError(f"{answer.reused_tokens} tokens of the prompt were in the cache")
        return answer.prefill_ms / 1000

    def decode(self, ids: list[int], tokens: int) -> float:
        answer = self._model.generate(ids, max_tokens=tokens + 1, ignore_eos=True)
        if answer.ms_per_token is None or answer.new_tokens != tokens + 1:
            raise RuntimeError(f"{answer.new_tokens} tokens instead of {tokens + 1}")
        return answer.ms_per_token * tokens / 1000
