"""Halfbyte: 4-bit language models on the machine you have, from Python.

    import halfbyte

    model = halfbyte.load()                      # the pocket model; or a folder, or a hub id
    print(model.generate("How do I extract a tar archive?").text)

The public names are those of `__all__`. They are imported when first used, so that `import halfbyte` is
quick; everything else in the package is its own affair.

What happens while a model is loaded goes to the logger `halfbyte`, never a prompt or an answer.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from halfbyte._version import __version__
from halfbyte.errors import (
    ContextFullError,
    DeviceError,
    DownloadError,
    GrammarError,
    HalfbyteError,
    InvalidModelError,
    ModelNotFoundError,
    TemplateError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    from halfbyte.answer import Generation, Stream, Token
    from halfbyte.async_answer import AsyncStream
    from halfbyte.embedding import EmbeddingOptions
    from halfbyte.executors import Progress
    from halfbyte.model import AnswerOptions, Model, load
    from halfbyte.options import LoadOptions, RunOptions
    from halfbyte.prompts import Message, Prompt
    from halfbyte.runtime import Grammar, SamplingParams
    from halfbyte.tasks.bench import Benchmark, bench
    from halfbyte.tasks.evaluate import Evaluation, evaluate
    from halfbyte.tasks.export import Exported, export
    from halfbyte.tasks.quantize import Quantized, quantize
    from halfbyte.text import Tokenizer

__all__ = [
    "AnswerOptions",
    "AsyncStream",
    "Benchmark",
    "ContextFullError",
    "DeviceError",
    "DownloadError",
    "EmbeddingOptions",
    "Evaluation",
    "Exported",
    "Generation",
    "Grammar",
    "GrammarError",
    "HalfbyteError",
    "InvalidModelError",
    "LoadOptions",
    "Message",
    "Model",
    "ModelNotFoundError",
    "Progress",
    "Prompt",
    "Quantized",
    "RunOptions",
    "SamplingParams",
    "Stream",
    "TemplateError",
    "Token",
    "Tokenizer",
    "UnsupportedModelError",
    "UsageError",
    "__version__",
    "bench",
    "evaluate",
    "export",
    "load",
    "quantize",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "AnswerOptions": "model",
    "AsyncStream": "async_answer",
    "Benchmark": "tasks.bench",
    "EmbeddingOptions": "embedding",
    "Evaluation": "tasks.evaluate",
    "Exported": "tasks.export",
    "Generation": "answer",
    "Grammar": "runtime",
    "LoadOptions": "options",
    "Message": "prompts",
    "Model": "model",
    "Progress": "executors",
    "Prompt": "prompts",
    "Quantized": "tasks.quantize",
    "RunOptions": "options",
    "SamplingParams": "runtime",
    "Stream": "answer",
    "Token": "answer",
    "Tokenizer": "text",
    "bench": "tasks.bench",
    "evaluate": "tasks.evaluate",
    "export": "tasks.export",
    "load": "model",
    "quantize": "tasks.quantize",
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
