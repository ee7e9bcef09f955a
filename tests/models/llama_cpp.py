"""llama.cpp in this process, by cyllama's wheels: its quantizer, its logits and its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from cyllama.llama.llama_cpp import (
    LlamaBatch,
    LlamaContext,
    LlamaContextParams,
    LlamaModel,
    LlamaModelParams,
    LlamaModelQuantizeParams,
    LlamaSampler,
    LlamaSamplerChainParams,
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

Link = tuple[str | float | int, ...]

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
    with _Model(path_model=str(path), params=LlamaModelParams(), verbose=False) as model, _read(model, ids) as context:
        return np.array([context.get_logits_ith(index) for index in range(len(ids))], np.float32)


@contextmanager
def _read(model: _Model, ids: list[int]) -> Iterator[LlamaContext]:
    """A context that has computed the logits of every position of a text."""
    params = LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(ids))
    params.n_threads = params.n_threads_batch = THREADS
    with LlamaContext(model=model, params=params, verbose=False) as context:
        batch = LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, 0, True)
        context.decode(batch)
        yield context


def tokens(path: Path, text: str) -> list[int]:
    """How llama.cpp cuts a text with the tokenizer of a file, no BOS, special tokens recognized."""
    with _Model(path_model=str(path), params=LlamaModelParams(), verbose=False) as model:
        return [int(token) for token in model.get_vocab().tokenize(text, False, True)]


class Rows:
    """Logits of a text in a context of llama.cpp, and what its samplers make of them."""

    def __init__(self, context: LlamaContext, vocab_size: int) -> None:
        self._context = context
        self._vocab_size = vocab_size

    def logits(self, row: int) -> np.ndarray:
        return np.array(self._context.get_logits_ith(row), np.float32)

    def chain(self, *links: Link, accepted: Sequence[int] = ()) -> LlamaSampler:
        """Samplers one after the other, each as its name in cyllama's `add_…` with its arguments."""
        chain = LlamaSampler(LlamaSamplerChainParams())
        for name, *values in links:
            getattr(chain, f"add_{name}")(*values)
        for token in accepted:
            chain.accept(token)
        return chain

    def draw(self, chain: LlamaSampler, row: int) -> int:
        """The token that a chain chooses, which it then has accepted."""
        return int(chain.sample(self._context, row))

    def candidates(self, chain: Callable[[], LlamaSampler], row: int) -> dict[int, float]:
        """The tokens that a chain would draw from, and their scores below the best one's.

        Nothing tells them but the token drawn. So a bias is given to one token at a time after the chain, and the best
        token taken: one that is left wins with a large bias, and with one that makes up for its distance from the best.

        Args:
            chain: Makes the chain. A clone of one will do, except with penalties: their clones forget their counts.
        """

        def wins(token: int, bias: float) -> bool:
            probe = chain()
            probe.add_logit_bias(self._vocab_size, [(token, bias)])
            probe.add_greedy()
            return self.draw(probe, row) == token

        kept = [token for token in range(self._vocab_size) if wins(token, 1e6)]
        return {token: -_turn(lambda bias, token=token: wins(token, bias)) for token in kept}


def _turn(answers: Callable[[float], bool]) -> float:
    """The number from 0 on, up to 1000, from which on the answer is yes."""
    low, high = 0.0, 1000.0
    if answers(low):
        return low
    for _ in range(36):
        middle = (low + high) / 2
        low, high = (low, middle) if answers(middle) else (middle, high)
    return high


@contextmanager
def rows(path: Path, ids: list[int]) -> Iterator[Rows]:
    """The logits for every position of a text, for samplers."""
    with _Model(path_model=str(path), params=LlamaModelParams(), verbose=False) as model, _read(model, ids) as context:
        yield Rows(context, model.n_vocab)
