"""Halfbyte: 4-bit language models on the machine you have, from Python.

    import halfbyte

    model = halfbyte.load()                      # the pocket model; or a folder, or a hub id
    print(model.generate("How do I extract a tar archive?").text)

The public names are those of `__all__`. They are imported when first used, so that `import halfbyte` is
quick; everything else in the package is its own affair.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from halfbyte._version import __version__
from halfbyte.errors import ContextFullError, DeviceError, HalfbyteError

if TYPE_CHECKING:
    from halfbyte.answer import Generation, Stream, Token
    from halfbyte.model import Model, load
    from halfbyte.options import RunOptions
    from halfbyte.runtime import SamplingParams

__all__ = [
    "ContextFullError",
    "Generation",
    "HalfbyteError",
    "Model",
    "RunOptions",
    "SamplingParams",
    "Stream",
    "Token",
    "__version__",
    "load",
]

_HOMES = {
    "Generation": "answer",
    "Model": "model",
    "RunOptions": "options",
    "SamplingParams": "runtime",
    "Stream": "answer",
    "Token": "answer",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'halfbyte' has no attribute {name!r}")
    if _in_subinterpreter():
        raise DeviceError(
            "Halfbyte does not work in a subinterpreter, because NumPy and its own compiled code do not.",
            "Use it in the main interpreter or in another process.",
        )
    return getattr(importlib.import_module(f"halfbyte.{_HOMES[name]}"), name)


def _in_subinterpreter() -> bool:
    """Whether this is not the main interpreter of its process, as far as Python's private modules say."""
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() != interpreters.get_main())
    return False


def __dir__() -> list[str]:
    return sorted(__all__)
