"""A hash of everything that decides which kernels run: what was found about kernels holds for these only."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]
_PLACES = ("__init__.py", "gpu/shaders", "gpu/lowering", "formats")
"""The package's own `__init__` has its version."""


@cache
def code_hash() -> str:
    """Changes with the version, and whenever a shader, a rule, a format or the lowering does."""
    digest = hashlib.sha256()
    for place in _PLACES:
        files = sorted((_PACKAGE / place).rglob("*")) or [_PACKAGE / place]
        for file in files:
            if file.suffix in (".py", ".wgsl"):
                digest.update(f"\0{file.relative_to(_PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
