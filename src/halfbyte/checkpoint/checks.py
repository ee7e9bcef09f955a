"""What every reader of a model's files shares: bounded JSON, shapes that arrays can have, one way to say "damaged"."""

from __future__ import annotations

import json
import math
import re
import reprlib
from pathlib import Path
from typing import Any, NoReturn

from halfbyte.errors import InvalidModelError, ModelNotFoundError

MAX_JSON_BYTES = 64_000_000
MAX_DIMENSIONS = 32
_LFS_POINTER = b"version https://git-lfs"


def damaged(path: Path, what: str) -> NoReturn:
    """Raise InvalidModelError about a file, in one line."""
    plain = re.sub(r"\s+", " ", what)
    raise InvalidModelError(f"{path} is damaged: {plain}.", "Delete it and download or make it again.")


def shown(value: object) -> str:
    """A value from a file, quoted and cut to a printable length."""
    return reprlib.repr(value) if not isinstance(value, str) or len(value) > 120 else repr(value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from JSON pairs; ValueError when a key comes twice."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {shown(key)} comes twice")
        table[key] = value
    return table


def is_shape(value: Any) -> bool:
    """Whether this is a list of sizes that an array can have: none negative, the product far from overflow."""
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    if not all(type(size) is int and 0 <= size < 2**48 for size in value):
        return False
    return bool(math.prod(max(size, 1) for size in value) < 2**56)


def read_json(path: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The JSON object in a file of bounded size; of a key that comes twice the last value counts, as everywhere.

    Args:
        may_be_empty: Whether a file without contents, or with null, means an empty object.

    Raises:
        ModelNotFoundError: The file cannot be read.
        InvalidModelError: It is too large, not JSON, not an object, or a Git LFS pointer.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            damaged(path, f"it has {size:,} bytes, more than the {MAX_JSON_BYTES:,} that make sense")
        data = path.read_bytes()
        refuse_lfs_pointer(path, data)
        document = None if may_be_empty and not data.strip() else json.loads(data)
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except (ValueError, RecursionError) as error:
        damaged(path, f"it is not valid JSON ({error})")
    if document is None and may_be_empty:
        return {}
    if not isinstance(document, dict):
        damaged(path, "it is not a JSON object")
    return document


def refuse_lfs_pointer(path: Path, data: bytes) -> None:
    """Refuse the small text that Git leaves in place of a file which Git LFS has not fetched.

    Raises:
        InvalidModelError: The data begin as such a text does.
    """
    if data.startswith(_LFS_POINTER):
        raise InvalidModelError(
            f"{path} is a Git LFS pointer: it stands for the file, which was not downloaded.",
            "Run `git lfs pull` in its folder.",
        )
