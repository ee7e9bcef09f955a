"""Samplers leave the tokens and the probabilities that llama.cpp's leave (pinned, from cyllama's wheel).

cyllama has no way to DRY and top-n-sigma; `tests/unit/test_samplers.py` has llama.cpp's own golden values for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.sampling.candidates import Candidates
from halfbyte.sampling.mirostat import Mirostat
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampler
from tests.models import llama_cpp
from tests.models.llama_cpp import Rows
from tests.models.test_interchange import small_tokenizer
from tests.models.tiny import VOCABULARY, tiny

SHARPER = 0.15
"""A temperature that gives the logits of random weights the spread of a real model's."""

IDS = [int(token) for token in np.random.default_rng(5).integers(3, VOCABULARY, 24)]
HISTORY = [7, 7, 50, 3, 7, 9, 50, 88, 4, 9]
"""Tokens of an answer."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    model = tiny("llama-3.2-1b")
    path = tmp_path_factory.mktemp("samplers") / "tiny.gguf"
    write_gguf(path, model, model.spec, small_tokenizer(), kind="stored")
    with llama_cpp.rows(path, IDS) as found:
        yield found


def scores_of(candidates: Candidates) -> dict[int, float]:
    below = candidates.scores - candidates.scores.max()
    return dict(zip(candidates.ids.tolist(), below.tolist(), strict=True))


XTC = ("xtc", 1.0, 0.08, 0, 1)
CASES: dict[str, tuple[dict[str, Any], list[llama_cpp.Link]]] = {
    "dynamic temperature": ({"temperature": 0.9, "dynatemp_range": 0.5}, [("temp_ext", 0.9, 0.5, 1.0)]),
    "dynamic temperature from 0": (
        {"temperature": 0.7, "dynatemp_range": 2.0, "dynatemp_exponent": 0.1},
        [("temp_ext", 0.7, 2.0, 0.1)],
    ),
    "xtc": ({"temperature": 1, "xtc_probability": 1, "xtc_threshold": 0.08}, [XTC]),
    "xtc of nothing": ({"temperature": 1, "xtc_probability": 1, "xtc_threshold": 0.9}, [("xtc", 1.0, 0.9, 0, 1)]),
    "xtc of all but one": ({"temperature": 1, "xtc_probability": 1, "xtc_threshold": 0}, [("xtc", 1.0, 0.0, 0, 1)]),
    "mirostat": ({"temperature": 1, "mirostat": 2, "mirostat_tau": 2.0}, [("mirostat_v2", 1, 2.0, 0.1)]),
    "mirostat that keeps one": ({"temperature": 1, "mirostat": 2, "mirostat_tau": 0}, [("mirostat_v2", 1, 0.0, 0.1)]),
    "penalties": (
        {
            "temperature": 1, "repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.8,
            "repeat_last_n": 6,
        },
        [("penalties", 6, 1.4, 0.3, 0.8)],
    ),
    "temperature after xtc": (
        {"temperature": 1.6, "xtc_probability": 1, "xtc_threshold": 0.08, "samplers": ["xtc", "temperature"]},
        [XTC, ("temp", 1.6)],
    ),
    "temperature before xtc": (
        {"temperature": 1.6, "xtc_probability": 1, "xtc_threshold": 0.08, "samplers": ["temperature", "xtc"]},
        [("temp", 1.6), XTC],
    ),
    "filters before penalties": (
        {
            "temperature": 1, "top_p": 0.7, "presence_penalty": 1.5, "repeat_last_n": 10,
            "samplers": ["top_p", "penalties"],
        },
        [("top_p", 0.7, 1), ("penalties", 10, 1.0, 0.0, 1.5)],
    ),
    "llama.cpp's own order": (
        {
            "temperature": 1.3, "dynatemp_range": 0.4, "top_k": 30, "typical_p": 0.9, "top_p": 0.85, "min_p": 0.06,
            "xtc_probability": 1, "xtc_threshold": 0.15, "repetition_penalty": 1.2, "repeat_last_n": 5,
            "logit_bias": {4: 2.0, 60: -3.0},
            "samplers": ["penalties", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature"],
        },
        [
            ("logit_bias", VOCABULARY, [(4, 2.0), (60, -3.0)]), ("penalties", 5, 1.2, 0.0, 0.0), ("top_k", 30),
            ("typical", 0.9, 1), ("top_p", 0.85, 1), ("min_p", 0.06, 1), ("xtc", 1.0, 0.15, 1, 1),
            ("temp_ext", 1.3, 0.4, 1.0),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_samplers_leave_what_llama_cpps_leave(rows: Rows, name: str) -> None:
    fields, links = CASES[name]
    cut = 0
    for row in range(0, len(IDS), 4):
        logits = rows.logits(row) / np.float32(SHARPER)
        ours = scores_of(Sampler(SamplingParams(**fields)).candidates(logits, [0], HISTORY))
        theirs = rows.candidates(lambda: rows.chain(("temp", SHARPER), *links, accepted=HISTORY), row)
        assert ours == pytest.approx(theirs, rel=1e-6, abs=2e-4)
        cut += len(ours) < VOCABULARY
    filtered = name.startswith(("dynamic", "penalties", "xtc of nothing")) is False
    assert bool(cut) == filtered


def test_mirostats_bound_moves_as_llama_cpps(rows: Rows) -> None:
    target, rate = 2.5, 0.3
    chain = rows.chain(("temp", SHARPER), ("mirostat_v2", 11, target, rate))
    mirostat = Mirostat(SamplingParams(temperature=1, mirostat=2, mirostat_tau=target, mirostat_eta=rate))
    sizes = set()
    for answered in range(20):
        row = answered % len(IDS)
        kept = mirostat.within(Candidates(rows.logits(row) / np.float32(SHARPER)), answered)
        assert scores_of(kept) == pytest.approx(rows.candidates(chain.clone, row), rel=1e-6, abs=2e-4)
        mirostat.learn(kept, rows.draw(chain, row), answered)
        sizes.add(kept.scores.size)
    assert len(sizes) > 5
