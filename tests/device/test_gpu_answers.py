"""The trained checkpoint in bf16 on a GPU: greedy answers token for token.

A sample on the software GPU. All 150, there or on another GPU as `halfbyte doctor` counts them:

    ALL_ANSWERS=1 ANSWERS_GPU=0 python -m pytest -s tests/device/test_gpu_answers.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import halfbyte
from tests.device.gpu import software_index

WHOLE = "ALL_ANSWERS" in os.environ
GPU = int(os.environ.get("ANSWERS_GPU", software_index()))


@pytest.mark.parametrize(("kv_dtype", "least"), [("f32", 1.0), ("f16", 140 / 150)])
def test_greedy_answers_are_the_same(
    shell_29m: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, kv_dtype: str, least: float
) -> None:
    if not WHOLE:
        monkeypatch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset())
    answers = [json.loads(line) for line in (shared / "data" / "answers-dev.jsonl").read_text().splitlines()]
    asked = answers if WHOLE else answers[:: len(answers) // 5]
    model = halfbyte.load(shell_29m, gpu=GPU, kv_dtype=kv_dtype, context=256)
    same = 0
    for answer in asked:
        got = model.generate(answer["question"], max_tokens=len(answer["greedy_ids"]))
        same += (list(got.token_ids), got.text) == (answer["greedy_ids"], answer["greedy_text"])
    print(f"{kv_dtype}: {same} of {len(asked)} on {model.why_device}")
    assert same >= int(least * len(asked))
