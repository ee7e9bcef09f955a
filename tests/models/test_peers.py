"""The benchmark's engine for llama.cpp gives each sequence of a batch the tokens that it gets alone.

The engine speaks llama.cpp's C API as llama-cpp-python binds it, which is compiled for the machine that measures. Here
cyllama's build of llama.cpp stands behind the same functions.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cyllama.llama import llama_cpp as cyllama

from benchmarks.peers import measure
from benchmarks.peers.models import SyntheticModel
from tests.models.llama_cpp import _Model

VOCABULARY = 8192
SEQUENCES = 3


def binding() -> ModuleType:
    """The functions of llama-cpp-python that the engine calls."""
    kept: list[np.ndarray] = []

    def load(path: bytes, params: Any) -> Any:
        return _Model(path_model=path.decode(), params=params, verbose=False)

    def batch(size: int, _: int, sequences: int) -> SimpleNamespace:
        rows = {name: [0] * size for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] * sequences for _ in range(size)], **rows)

    def one(tokens: Any, count: int) -> SimpleNamespace:
        return SimpleNamespace(n_tokens=count, token=list(tokens), pos=None)

    def decode(context: Any, given: SimpleNamespace) -> int:
        made = cyllama.LlamaBatch(n_tokens=given.n_tokens, embd=0, n_seq_max=1)
        if given.pos is None:
            start = context.memory_seq_pos_max(0) + 1
            for row in range(given.n_tokens):
                made.add(given.token[row], start + row, [0], row == given.n_tokens - 1)
        else:
            for row in range(given.n_tokens):
                assert given.n_seq_id[row] == 1
                made.add(given.token[row], given.pos[row], given.seq_id[row][:1], bool(given.logits[row]))
        context.decode(made)
        return 0

    def row_of(context: Any, row: int) -> Any:
        kept.append(np.array(context.get_logits_ith(row), np.float32))
        return kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    found = ModuleType("llama_cpp")
    found.__dict__.update(
        llama_backend_init=lambda: None, llama_model_load_from_file=load,
        llama_model_default_params=cyllama.LlamaModelParams, llama_context_default_params=cyllama.LlamaContextParams,
        llama_init_from_model=lambda model, params: cyllama.LlamaContext(model=model, params=params, verbose=False),
        llama_model_get_vocab=lambda model: model.get_vocab(), llama_vocab_n_tokens=lambda vocab: vocab.n_vocab,
        llama_print_system_info=lambda: b"", llama_batch_init=batch, llama_batch_get_one=one, llama_decode=decode,
        llama_get_memory=lambda context: context, llama_get_logits_ith=row_of,
        llama_memory_clear=lambda context, data: context.kv_cache_clear(data),
    )  # fmt: skip
    return found


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """llama.cpp on one layer in the shape of Llama-3.2-1B."""
    model = SyntheticModel("llama-3.2-1b", layers=1, vocabulary=VOCABULARY, cache=tmp_path)
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "llama-cpp-python" else real(name))
    monkeypatch.setitem(sys.modules, "llama_cpp", binding())
    monkeypatch.delitem(sys.modules, "benchmarks.peers.engines.llama_cpp", raising=False)
    module = importlib.import_module("benchmarks.peers.engines.llama_cpp")
    monkeypatch.setattr(module, "BATCH", 20)
    yield module.Engine(str(model.source("gguf")), 1, 64, SEQUENCES)
    sys.modules.pop("benchmarks.peers.engines.llama_cpp", None)


def test_a_batch_gives_each_sequence_its_own_next_tokens(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of three lengths, which batches of 20 tokens cut apart; then two steps for all."""
    prompts = [measure.token_ids(VOCABULARY, length, length) for length in (9, 16, 13)]
    alone = []
    for ids in prompts:
        texts = [ids]
        for _ in range(3):
            texts.append([*texts[-1], int(engine.logits(texts[-1]).argmax())])
        alone.append(texts[-1][len(ids) :])
    steps: list[dict[int, int]] = []
    choose = engine._choose
    monkeypatch.setattr(engine, "_choose", lambda entries: steps.append(choose(entries)) or steps[-1])
    assert engine.batch(prompts, 3) > 0
    assert [[step[s] for step in steps] for s in range(SEQUENCES)] == alone
