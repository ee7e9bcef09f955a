"""A model on the GPU through the public API."""

from __future__ import annotations

import halfbyte
from halfbyte.webgpu.device import find_adapters

QUESTION = {"role": "user", "content": "How do I extract a tar archive?"}
ANSWER = "Use `tar`:\n`tar xf path/to/archive.tar.gz`"


def test_the_pocket_model_converses_on_the_gpu() -> None:
    software = next(i for i, adapter in enumerate(find_adapters()) if adapter.software)
    model = halfbyte.load(device="gpu", gpu=software, context=256)
    assert model.chat([QUESTION]).text == ANSWER
    messages = [QUESTION, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "What does grep do?"}]
    second = model.chat(messages, max_tokens=8)
    assert second.reused_tokens > 20
    assert second.token_ids == halfbyte.load(device="cpu").chat(messages, max_tokens=8).token_ids
    with_logprobs = model.chat([QUESTION], logprobs=2)
    assert with_logprobs.text == ANSWER, "chosen on the host, which the GPU's sampler leaves log-probabilities to"
