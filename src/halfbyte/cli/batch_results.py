"""The file of `run --prompts --output`: a line of JSON per answer, in the order of the prompts.

Each line begins with the number of its prompt's line and a digest of that line and the settings. The same command given
again finds by them how far it came; a line that was half written is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from halfbyte.atomic import claimed, refuse_unwritable
from halfbyte.cli.batch_lines import Line
from halfbyte.errors import UsageError


class Results:
    """Answers in a file.

    Args:
        path: The file.
        settings: What decides about the answers besides the lines, as JSON can hold it.
        overwrite: Whether to begin anew instead of going on.

    Raises:
        UsageError: The path is not that of a file.
        OSError: Its folder cannot be written to.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file.", "Choose another name, or --json to print the answers.")
        refuse_unwritable(path, overwrite=True)
        self.path = path
        self._settings = json.dumps(settings, sort_keys=True, default=str).encode()
        self._overwrite = overwrite

    def skip(self, lines: Iterator[Line]) -> tuple[Iterator[Line], int]:
        """The lines that have no answer in the file yet, and how many have one.

        Raises:
            UsageError: The file holds something else than answers to these lines.
        """
        if self._overwrite or not self.path.exists():
            return lines, 0
        done = 0
        with self.path.open("r+b") as file:
            for found in iter(file.readline, b""):
                line = next(lines, None)
                head = b"" if line is None else self._head(line).encode()
                if line is None or not head.startswith(found[: len(head)]):
                    raise UsageError(
                        f"{self.path} has answers to other prompts or with other settings, from line {done + 1} on.",
                        "Choose another name, or pass --overwrite to begin anew.",
                    )
                if not found.endswith(b"\n"):
                    file.seek(-len(found), 1)
                    file.truncate()
                    return chain([line], lines), done
                done += 1
        return lines, done

    @contextmanager
    def opened(self) -> Iterator[Callable[[Line, Mapping[str, Any]], None]]:
        """Gives what to call with a line and what is to be written for it.

        Raises:
            UsageError: Another process is writing the file.
            OSError: It cannot be written.
        """
        with claimed(self.path), self.path.open("wb" if self._overwrite else "ab") as file:

            def write(line: Line, values: Mapping[str, Any]) -> None:
                rest = {name: value for name, value in values.items() if name not in ("line", "digest")}
                body = json.dumps(rest, ensure_ascii=False, allow_nan=False).removeprefix("{")
                file.write(f"{self._head(line)}, {body}\n".encode())
                file.flush()

            yield write

    def _head(self, line: Line) -> str:
        """What the answer to a line begins with."""
        digest = sha256(self._settings + b"\n" + line.text).hexdigest()[:16]
        return f'{{"line": {line.number}, "digest": "{digest}"'
