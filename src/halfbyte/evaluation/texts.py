"""Texts to evaluate on: a file, or WikiText-2 as published, from the hub."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte import user_files
from halfbyte.errors import DownloadError, HalfbyteError, UsageError
from halfbyte.text import Tokenizer

WIKITEXT = "wikitext-2"
_ARCHIVE = ("ggml-org/ci", "wikitext-2-raw-v1.zip", "wikitext-2-raw/wiki.test.raw")


def read_text(where: str, *, joined: str = "\n") -> str:
    """A text file's content, or the test split of WikiText-2 (raw) for `wikitext-2`.

    Args:
        joined: What goes between the rows of WikiText-2: a line break, or two for GPTQ's protocol.

    Raises:
        UsageError: The file cannot be read as UTF-8.
        DownloadError: WikiText-2 could not be downloaded.
    """
    if where == WIKITEXT:
        return joined.join(_wikitext_rows())
    return user_files.read_text(Path(where), f"Give UTF-8 text, or {WIKITEXT}.")


def _wikitext_rows() -> list[str]:
    """The rows of the data set: each a line with its line break, or empty."""
    from halfbyte.checkpoint.hub import dataset_file

    repo, archive, member = _ARCHIVE
    try:
        path = dataset_file(repo, archive)
    except HalfbyteError as error:
        raise DownloadError(
            f"WikiText-2 could not be downloaded: {error.message}", "Give a text file instead."
        ) from error
    with zipfile.ZipFile(path) as file:
        lines = file.read(member).decode("utf-8").split("\n")
    return [f"{line}\n" if line.strip() else "" for line in lines]


def tokens_of(tokenizer: Tokenizer, text: str, most: int | None = None) -> NDArray[np.int32]:
    """The first tokens of a text, none of them special.

    Raises:
        UsageError: There are fewer than two.
    """
    ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)[:most]
    if len(ids) < 2:
        raise UsageError(f"The text has only {len(ids)} tokens.", "Give a longer text.")
    return ids
