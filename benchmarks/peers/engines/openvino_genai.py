"""OpenVINO GenAI's `LLMPipeline` on a folder that optimum-intel makes; logits come from its graph alone."""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
import openvino
import openvino_genai as api
from numpy.typing import NDArray


class Engine:
    """A folder with `openvino_model.xml` and OpenVINO's form of a tokenizer."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        self._path = path
        self._device = {"INFERENCE_NUM_THREADS": threads}
        scheduler = api.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = context
        self._pipeline = api.LLMPipeline(
            path, "CPU", scheduler_config=scheduler, KV_CACHE_PRECISION="f16", **self._device
        )
        self.versions = {"openvino-genai": version("openvino-genai"), "openvino": openvino.get_version()}
        self.settings = {"cache": "f16", "prefix_caching": "on"}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        compiled = openvino.Core().compile_model(f"{self._path}/openvino_model.xml", "CPU", self._device)
        tokens = np.array([ids], np.int64)
        positions = np.arange(len(ids), dtype=np.int64)[None]
        given = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": positions}
        given["beam_idx"] = np.zeros(1, np.int32)
        names = {name for port in compiled.inputs for name in port.names}
        result = compiled({name: value for name, value in given.items() if name in names})
        return np.asarray(result["logits"], np.float32)[0, -1]

    def prefill(self, ids: list[int]) -> float:
        start = time.perf_counter()
        self._generate(ids, 1)
        return time.perf_counter() - start

    def decode(self, ids: list[int], tokens: int) -> float:
        return float(self._generate(ids, tokens + 1).perf_metrics.get_tpot().mean) * tokens / 1000

    def _generate(self, ids: list[int], tokens: int) -> api.EncodedResults:
        config = api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        answer = self._pipeline.generate(openvino.Tensor(np.array([ids], np.int64)), config)
        if len(answer.tokens[0]) != tokens:
            raise RuntimeError(f"{len(answer.tokens[0])} tokens instead of {tokens}")
        return answer
