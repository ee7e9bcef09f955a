"""A file as people have them: Gemma 3 270M in Q4_K_M, half of whose matrices are Q5_0; scripts/gemma brings it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.text import Tokenizer
from tests.conftest import ROOT
from tests.models import llama_cpp
from tests.models.test_interchange import divergence

FILE = ROOT / ".cache" / "gemma-3-270m-q4_k_m.gguf"
TOKENS = 96


@pytest.fixture(scope="module")
def ids(shared: Path) -> list[int]:
    text = (shared / "data" / "books-dev.txt").read_text(encoding="utf-8")[:2000]
    return Tokenizer(open_gguf(FILE).tokenizer_files()).encode(text)[:TOKENS]


def test_its_weights_take_what_the_file_says() -> None:
    checkpoint = open_gguf(FILE)
    weights = ExecutableWeights(checkpoint)
    count = sum(map(math.prod, weights.shapes.values()))
    bits = 8 * sum(weights.format(name).nbytes(shape) for name, shape in weights.shapes.items()) / count
    assert bits == pytest.approx(7.358, abs=0.001)
    assert weights.notes == ("10 matrices in q8_0 run as q8g32.",)


def test_its_logits_are_llama_cpps(ids: list[int]) -> None:
    """llama.cpp rounds activations to 8 bits, which moves its logits; Halfbyte's own rounding adds to that."""
    theirs = llama_cpp.logits(FILE, ids)
    for activations, most in (("f32", 0.006), ("int8", 0.008)):
        with halfbyte.load(FILE, "cpu", context=TOKENS, activations=activations) as model:
            ours = np.concatenate([rows.copy() for rows in model.engine.score(ids)])
        assert divergence(theirs, ours) < most
        apart = negative_log_likelihood(ours, ids) - negative_log_likelihood(theirs, ids)
        assert abs(apart.mean()) < 3 * apart.std() / math.sqrt(len(apart))


def negative_log_likelihood(logits: np.ndarray, ids: list[int]) -> np.ndarray:
    """Of each token after the first."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    return np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(rows)), ids[1:]]
