"""Halfbyte on a GPU."""

from __future__ import annotations

from benchmarks.peers.engines import halfbyte


class Engine(halfbyte.Engine):
    """A Halfbyte folder; threads of the CPU do nothing."""

    def __init__(self, path: str, threads: int, context: int, sequences: int = 1) -> None:
        super().__init__(path, None, context, sequences, device="gpu")
        self.settings["device"] = self._model.executor.about
