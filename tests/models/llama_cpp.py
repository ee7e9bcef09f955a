"""llama.cpp in this process, by cyllama's wheels: its quantizer, its logits and its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cyllama.llama.llama_cpp import (
    LlamaBatch,
    LlamaContext,
    LlamaContextParams,
    LlamaModel,
    LlamaModelParams,
    LlamaModelQuantizeParams,
    disable_logging,
    model_quantize,
)

THREADS = 1
"""More would wait for each other, spinning, where test processes share processors."""

FILE_TYPES = {
    "f32": 0, "f16": 1, "bf16": 32, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_m": 12,
    "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30,
}  # fmt: skip
"""llama.cpp's numbers of kinds of file (`llama_ftype`)."""

disable_logging()


class _Model(LlamaModel):
    """cyllama's contexts ask their model for `n_vocab`, which it has only in its vocabulary."""

    @property
    def n_vocab(self) -> int:
        return int(self.get_vocab().n_vocab)


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file of another kind with llama.cpp's own quantizer."""
    params = LlamaModelQuantizeParams()
    params.ftype, params.allow_requantize, params.nthread = FILE_TYPES[kind], True, THREADS
    model_quantize(str(source), str(target), params)


def logits(path: Path, ids: list[int]) -> np.ndarray:
    """What llama.cpp gives for every position of a text, `[tokens, vocabulary]`."""
    params = LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(ids))
    params.n_threads = params.n_threads_batch = THREADS
    with (
        _Model(path_model=str(path), params=LlamaModelParams(), verbose=False) as model,
        LlamaContext(model=model, params=params, verbose=False) as context,
    ):
        batch = LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, 0, True)
        context.decode(batch)
        return np.array([context.get_logits_ith(index) for index in range(len(ids))], np.float32)


def tokens(path: Path, text: str) -> list[int]:
    """How llama.cpp cuts a text with the tokenizer of a file, no BOS, special tokens recognized."""
    with _Model(path_model=str(path), params=LlamaModelParams(), verbose=False) as model:
        return [int(token) for token in model.get_vocab().tokenize(text, False, True)]
