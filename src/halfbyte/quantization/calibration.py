"""Calibration text: a file's tokens, cut into texts of one length, taken evenly from the whole file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.errors import UsageError
from halfbyte.user_files import read_text

TOKENS = 65_536
LENGTH = 512


def read_calibration(model: Checkpoint, file: Path, *, tokens: int = TOKENS, length: int = LENGTH) -> NDArray[np.int32]:
    """Token ids `[texts, length]`, at most `tokens` in all, from texts spread evenly over a file.

    Args:
        model: Whose tokenizer is used.
        file: UTF-8 text.

    Raises:
        UsageError: The file cannot be read, is no text, or has fewer than `length` tokens.
    """
    from halfbyte.text import Tokenizer

    text = read_text(file, "Give a file of UTF-8 text.")
    ids = np.array(Tokenizer(model.tokenizer_files()).encode(text, add_special_tokens=False), np.int32)
    whole = len(ids) // length
    wanted = min(whole, tokens // length)
    if wanted < 1:
        raise UsageError(
            f"{file} has {len(ids):,} tokens; calibration needs at least {length}.", "Give more text or more tokens."
        )
    return ids[: whole * length].reshape(whole, length)[np.arange(wanted) * whole // wanted]
