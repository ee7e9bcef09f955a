"""A hash of everything that decides which kernels run: what was found about kernels holds for these only."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import halfbyte

_ROOT = Path(halfbyte.__file__).parent
_PLACES = ("gpu/shaders", "gpu/lowering", "formats")


@cache
def code_hash() -> str:
    """Changes with the version, and whenever a shader, a rule, a format or the lowering does."""
    digest = hashlib.sha256(halfbyte.__version__.encode())
    for place in _PLACES:
        for file in sorted((_ROOT / place).rglob("*")):
            if file.suffix in (".py", ".wgsl"):
                digest.update(f"\0{file.relative_to(_ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
