"""Vectors of a trained model are those that transformers' hidden states give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import halfbyte

TEXTS = [
    "How do I extract a tar archive?",
    "tar xf path/to/archive.tar.gz",
    "a",
    "grep -r pattern /tmp | sort | uniq -c\n" * 9,
]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_transformers(shell_29m: Path, pooling: Any) -> None:
    """In one piece there, in pieces of 50 tokens here; at the length of 1, and at their own."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(shell_29m)
    judge = transformers.AutoModel.from_pretrained(shell_29m, dtype=torch.float32)
    expected = []
    with torch.no_grad():
        for text in TEXTS:
            states = judge(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
            expected.append((states.mean(dim=0) if pooling == "mean" else states[-1]).numpy())
    with halfbyte.load(shell_29m, "cpu", activations="f32", kv_dtype="f32", batch_tokens=50, sequences=2) as model:
        plain = model.embed(TEXTS, pooling=pooling, normalize=False)
        assert np.abs(plain - expected).max() < 1e-4 * np.abs(expected).max()
        units = torch.nn.functional.normalize(torch.tensor(np.array(expected)), dim=1).numpy()
        assert np.abs(model.embed(TEXTS, pooling=pooling) - units).max() < 1e-4
        few = torch.nn.functional.normalize(torch.tensor(np.array(expected)[:, :100]), dim=1).numpy()
        assert np.abs(model.embed(TEXTS, pooling=pooling, dimensions=100) - few).max() < 1e-4
