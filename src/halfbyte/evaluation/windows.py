"""Protocols: how a text is cut into windows, and which of their tokens are scored.

    windows   windows of N tokens without overlap, the last one as long as it is; all tokens but each first
    gptq      the same with full windows only, N = 2048 (text rows joined with two line breaks)
    llama.cpp full windows of 512; BOS in place of each first token; scored is the second half
    sliding   windows of N tokens that move by a stride; each scores what the one before did not see

None but llama.cpp adds a BOS token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UsageError

Name = Literal["windows", "gptq", "llama.cpp", "sliding"]
WINDOWS = (16, 96, 192, 256, 512, 768, 1024, 1536, 2048)
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """Tokens that are seen together; those from `first_scored` (at least 1) on are predicted."""

    ids: Ids
    first_scored: int = 1


@dataclass(frozen=True)
class Protocol:
    """A way to cut a text.

    Attributes:
        window: Tokens of a window.
        stride: How far `sliding` moves.
        bos: The token that `llama.cpp` puts in place of each window's first; None where the model has none.
    """

    name: Name = "windows"
    window: int = 2048
    stride: int = 512
    bos: int | None = None

    def cut(self, ids: Ids) -> list[Window]:
        """The windows of a text.

        Raises:
            UsageError: The text is too short, or a length is out of range.
        """
        if self.window < 2 or self.stride < 1:
            raise UsageError(
                f"Windows of {self.window} with stride {self.stride} cannot be scored.",
                "Choose at least 2 and 1.",
            )
        found = _CUTTERS[self.name](self, ids)
        if not found:
            raise UsageError(f"{len(ids):,} tokens are too few for {self.name} with {self.window}.", "Give more text.")
        return found

    @property
    def bos_used(self) -> bool:
        """Whether windows begin with a BOS token."""
        return self.name == "llama.cpp" and self.bos is not None


def protocol(name: Name, window: int | None = None, stride: int | None = None, bos: int | None = None) -> Protocol:
    """A protocol with its own lengths where none are given: 512 for llama.cpp, 2048 for the others."""
    length = window or (512 if name == "llama.cpp" else 2048)
    return Protocol(name, length, stride or max(1, length // 4), bos)


def _plain(protocol: Protocol, ids: Ids) -> list[Window]:
    pieces = [ids[start : start + protocol.window] for start in range(0, len(ids), protocol.window)]
    return [Window(piece) for piece in pieces if len(piece) > 1]


def _full(protocol: Protocol, ids: Ids) -> list[Window]:
    return [window for window in _plain(protocol, ids) if len(window.ids) == protocol.window]


def _llama_cpp(protocol: Protocol, ids: Ids) -> list[Window]:
    found = []
    for window in _full(protocol, ids):
        changed = window.ids.copy()
        changed[0] = changed[0] if protocol.bos is None else protocol.bos
        found.append(Window(changed, protocol.window // 2 + 1))
    return found


def _sliding(protocol: Protocol, ids: Ids) -> list[Window]:
    found, seen = [], 1
    for start in range(0, len(ids), protocol.stride):
        piece = ids[start : start + protocol.window]
        if start + len(piece) > seen:
            found.append(Window(piece, max(seen - start, 1)))
        seen = start + len(piece)
        if seen == len(ids):
            break
    return found


_CUTTERS: dict[str, Callable[[Protocol, Ids], list[Window]]] = {
    "windows": _plain,
    "gptq": _full,
    "llama.cpp": _llama_cpp,
    "sliding": _sliding,
}
