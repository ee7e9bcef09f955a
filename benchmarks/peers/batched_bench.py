"""llama.cpp's own `llama-batched-bench`, where one was built for a GPU: a process per repetition.

It reads all prompts, then feeds a token to every sequence at each step. Tokens are random, it chooses none, and its
logits cannot be had, so it is not checked against Halfbyte. Its time is that of both phases, without loading.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import PeerError, reason

LAYERS = 999
"""More than any model has: all of them go to the GPU."""

LONGEST_S = 1800.0


class BatchedBench:
    """The program, as something that can be asked like an engine in another process.

    Attributes:
        versions, settings: What the program says about itself, and how it is started.

    Raises:
        PeerError: It does not start.
    """

    def __init__(self, program: Path, files: Path) -> None:
        self._program, self._files = program, files
        said = self._run(["--version"])
        found = next((line for line in said.splitlines() if line.startswith("version")), "unknown")
        self.versions = {"llama.cpp": found.removeprefix("version:").strip()}
        self.settings = {"program": program.name, "n_gpu_layers": str(LAYERS), "tokens": "random, none are chosen"}

    def ask(self, do: str, *, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Seconds for as many prompts of the same length, and so many tokens after each.

        The first token needs no step of its own: the prompt gives it.

        Raises:
            PeerError: It failed, or was asked for something else.
        """
        if do != "batch" or tokens < 2:
            raise PeerError(f"{self._program.name} cannot do {do} of {tokens} tokens")
        count, length = len(prompts), len(prompts[0])
        said = self._run([
            "--model", str(self._files), "--output-format", "jsonl", "--n-gpu-layers", str(LAYERS),
            "--ctx-size", str(count * (length + tokens)),
            "-npp", str(length), "-ntg", str(tokens - 1), "-npl", str(count),
        ])  # fmt: skip
        line = next((line for line in said.splitlines() if line.startswith("{")), None)
        if line is None:
            raise PeerError(f"{self._program.name} printed no measurement: {reason(said, 0)}")
        found: dict[str, Any] = json.loads(line)
        if (found["pp"], found["tg"], found["pl"]) != (length, tokens - 1, count):
            raise PeerError(f"{self._program.name} measured something else: {line}")
        self.settings |= {name: str(found[name]) for name in ("n_batch", "n_ubatch", "flash_attn")}
        return float(found["t_pp"]) + float(found["t_tg"])

    def _run(self, arguments: list[str]) -> str:
        """What it prints."""
        try:
            done = subprocess.run(
                [str(self._program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", timeout=LONGEST_S,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"{self._program} cannot be run: {error}") from error
        if done.returncode:
            raise PeerError(reason(done.stdout, done.returncode))
        return done.stdout
