"""llama.cpp through its C API, as llama-cpp-python binds it; greedy choice in NumPy."""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import version

import llama_cpp as api
import numpy as np
from numpy.typing import NDArray

BATCH = 512

Entry = tuple[int, int, int, bool]
"""A token of a batch: its id, position and sequence, and whether another follows from it."""


class Engine:
    """A GGUF file."""

    def __init__(self, path: str, threads: int, context: int, sequences: int = 1) -> None:
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp did not load the file")
        params = api.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = context * sequences, sequences, BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp did not make a context")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._held: list[int] = []
        self._entries = api.llama_batch_init(BATCH, 0, 1)
        self.versions = {"llama-cpp-python": version("llama-cpp-python")}
        self.settings = {"n_batch": str(BATCH), "n_seq_max": str(sequences)}
        self.settings |= {"features": api.llama_print_system_info().decode().strip()}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        self._restart()
        self._feed(ids)
        return self._last().copy()

    def prefill(self, ids: list[int]) -> float:
        self._restart()
        start = time.perf_counter()
        self._feed(ids)
        self._last().argmax()
        return time.perf_counter() - start

    def decode(self, ids: list[int], tokens: int) -> float:
        if self._held != ids:
            self._restart()
            self._feed(ids[:-1])
            self._held = ids
        else:
            api.llama_memory_seq_rm(self._memory(), 0, len(ids) - 1, -1)
        self._feed(ids[-1:])
        token = int(self._last().argmax())
        start = time.perf_counter()
        for _ in range(tokens):
            self._feed([token])
            token = int(self._last().argmax())
        return time.perf_counter() - start

    def batch(self, prompts: list[list[int]], tokens: int) -> float:
        self._restart()
        entries = [
            (token, position, sequence, position == len(ids) - 1)
            for sequence, ids in enumerate(prompts)
            for position, token in enumerate(ids)
        ]
        start = time.perf_counter()
        chosen = self._choose(entries)
        for step in range(tokens - 1):
            chosen = self._choose([(chosen[s], len(ids) + step, s, True) for s, ids in enumerate(prompts)])
        return time.perf_counter() - start

    def _choose(self, entries: list[Entry]) -> dict[int, int]:
        """Run tokens of several sequences; the most likely next token of each sequence that has one, by number."""
        chosen: dict[int, int] = {}
        for start in range(0, len(entries), BATCH):
            chunk = entries[start : start + BATCH]
            self._decode(chunk)
            for row, (_, _, sequence, last) in enumerate(chunk):
                if last:
                    chosen[sequence] = int(self._row(row).argmax())
        return chosen

    def _decode(self, entries: list[Entry]) -> None:
        batch = self._entries
        batch.n_tokens = len(entries)
        for row, (token, position, sequence, last) in enumerate(entries):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = last
        if status := api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {status}")

    def _memory(self) -> object:
        return api.llama_get_memory(self._context)

    def _restart(self) -> None:
        api.llama_memory_clear(self._memory(), True)
        self._held = []

    def _feed(self, ids: list[int]) -> None:
        for start in range(0, len(ids), BATCH):
            chunk = ids[start : start + BATCH]
            tokens = (ctypes.c_int32 * len(chunk))(*chunk)
            batch = api.llama_batch_get_one(tokens, len(chunk))
            if status := api.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode gave {status}")

    def _last(self) -> NDArray[np.float32]:
        """The last token's logits, a view."""
        return self._row(-1)

    def _row(self, token: int) -> NDArray[np.float32]:
        """The logits after a token of the batch, a view."""
        return np.ctypeslib.as_array(api.llama_get_logits_ith(self._context, token), (self._vocabulary,))
