"""A model on the GPU through the public API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.checkpoint.folder import open_checkpoint
from halfbyte.checkpoint.gguf_writer import write_gguf
from halfbyte.models import build_spec
from halfbyte.quantize import quantize
from halfbyte.webgpu.device import find_adapters

SOFTWARE = next(i for i, adapter in enumerate(find_adapters()) if adapter.software)
QUESTION = {"role": "user", "content": "How do I extract a tar archive?"}
ANSWER = "Use `tar`:\n`tar xf path/to/archive.tar.gz`"


def test_the_pocket_model_converses_on_the_gpu() -> None:
    model = halfbyte.load(device="gpu", gpu=SOFTWARE, context=256)
    assert model.chat([QUESTION]).text == ANSWER
    messages = [QUESTION, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "What does grep do?"}]
    second = model.chat(messages, max_tokens=8)
    assert second.reused_tokens > 20
    assert second.token_ids == halfbyte.load(device="cpu").chat(messages, max_tokens=8).token_ids
    with_logprobs = model.chat([QUESTION], logprobs=2)
    assert with_logprobs.text == ANSWER, "chosen on the host, which the GPU's sampler leaves log-probabilities to"


@pytest.mark.parametrize("stored", ["q4_k_m", "q3g32z, q8g32"])
def test_quantized_files_answer_as_on_the_cpu(shell_29m: Path, tmp_path: Path, stored: str) -> None:
    """Q4_K and Q6_K as llama.cpp stores them; a folder of 3 bits whose embeddings have 8."""
    if stored == "q4_k_m":
        source = open_checkpoint(shell_29m)
        spec = build_spec(source.config, source.generation_config, source.shapes)
        write_gguf(path := tmp_path / "shell.gguf", source, spec, source.tokenizer_files(), kind=stored)
    else:
        quantize(shell_29m, path := tmp_path / "shell", bits=3, zero_points=True, embed_bits=8)
    gpu, cpu = (
        halfbyte.load(path, device, gpu=number, activations="f32", kv_dtype="f32", context=128)
        for device, number in (("gpu", SOFTWARE), ("cpu", None))
    )
    assert not gpu.notes
    ids = cpu.encode([QUESTION])
    got, expected = (np.concatenate([rows.copy() for rows in model.engine.score(ids)]) for model in (gpu, cpu))
    assert np.abs(got - expected).max() < 2e-3
    answers = [model.generate(ids, max_tokens=12).token_ids for model in (gpu, cpu)]
    assert len(answers[0]) == 12
    assert answers[0] == answers[1]
