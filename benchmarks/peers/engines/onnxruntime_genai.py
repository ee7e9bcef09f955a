"""ONNX Runtime GenAI on the folder that its own builder makes: `MatMulNBits`, int8 accumulation."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai as api
from numpy.typing import NDArray


class Engine:
    """A folder with `genai_config.json`."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        config = api.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = api.Model(config)
        self._context = context
        self._held: tuple[list[int], api.Generator] | None = None
        self.versions = {"onnxruntime-genai": version("onnxruntime-genai"), "onnxruntime": version("onnxruntime")}
        self.settings = {"operators": ", ".join(_quantized(Path(path)))}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        generator = self._generator()
        generator.append_tokens(np.array([ids], np.int32))
        return np.asarray(generator.get_logits(), np.float32)[0, -1]

    def prefill(self, ids: list[int]) -> float:
        self._held = None
        generator = self._generator()
        start = time.perf_counter()
        generator.append_tokens(np.array([ids], np.int32))
        generator.generate_next_token()
        return time.perf_counter() - start

    def decode(self, ids: list[int], tokens: int) -> float:
        generator = self._after(ids)
        generator.generate_next_token()
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        return time.perf_counter() - start

    def _after(self, ids: list[int]) -> api.Generator:
        """A generator that has read `ids`: the one before, its last token read again, if it began with the same."""
        if self._held is None or self._held[0] != ids or len(ids) < 2:
            self._held = ids, self._generator()
            self._held[1].append_tokens(np.array([ids], np.int32))
        else:
            self._held[1].rewind_to(len(ids) - 1)
            self._held[1].append_tokens(np.array([ids[-1:]], np.int32))
        return self._held[1]

    def _generator(self) -> api.Generator:
        """One that does not stop at an end token."""
        params = api.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self._context, min_length=self._context)
        return api.Generator(self._model, params)


def _quantized(folder: Path) -> list[str]:
    """What the graph multiplies quantized matrices with: operator, bits and block size, each once."""
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = set()
    for node in graph.node:
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        if "bits" in sizes:
            accuracy = sizes.get("accuracy_level", 0)
            found.add(
                f"{node.op_type} {sizes['bits']} bits, blocks of {sizes['block_size']}, accuracy level {accuracy}"
            )
    return sorted(found)
