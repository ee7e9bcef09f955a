"""Many machines, by Ray: `serve` answers requests there, `data` answers and judges prompts in bulk.

Each is imported when it is asked for: a replica needs no Ray Data, and a stage no server.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from halfbyte.errors import UsageError

if find_spec("ray") is None:
    raise UsageError.not_installed("A cluster", "ray", "ray")

if TYPE_CHECKING:
    from halfbyte.cluster.data import Generator, Subject, evaluate, generate
    from halfbyte.cluster.serve import Arguments, app

__all__ = ["Arguments", "Generator", "Subject", "app", "evaluate", "generate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = "serve" if name in ("Arguments", "app") else "data"
    return getattr(import_module(f"{__name__}.{where}"), name)
