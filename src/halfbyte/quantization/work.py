"""The folder `.NAME.work` beside the target NAME: unfinished work is kept there, so that it can be resumed.

It holds each finished layer's parts, and the residual streams that the next layer starts from. A layer counts as
finished when the file with their number is replaced, which happens last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte import atomic
from halfbyte.errors import UsageError
from halfbyte.formats import Parts

Array = NDArray[np.float32]

_STATE = "state.json"


_FORMATS = "formats.json"


def work_path(target: Path) -> Path:
    """The work folder of a target."""
    return target.with_name(f".{target.name}.work")


def is_resumable(path: Path) -> bool:
    """Whether a work folder holds anything that took time to compute."""
    return bool(_state(path).get("finished")) or (path / _FORMATS).is_file()


def refuse_other_work(path: Path, task: Mapping[str, Any], *, restart: bool) -> None:
    """Refuse to begin where another task's work is unfinished.

    Args:
        restart: Whether any unfinished work is to be discarded instead.

    Raises:
        UsageError: There is such work; the message names what differs.
    """
    if restart or not is_resumable(path):
        if restart or _state(path).get("task") != task:
            shutil.rmtree(path, ignore_errors=True)
        return
    kept = _state(path).get("task", {})
    names = [name for name in {**kept, **task} if kept.get(name) != task.get(name)]
    if names:
        changed = ", ".join(_change(name, kept.get(name), task.get(name)) for name in names)
        raise UsageError(
            f"{path} holds unfinished work of a command with other options ({changed}).",
            "Give the same options to resume it, choose another target, or pass restart=True to discard it.",
        )


def _change(name: str, old: object, new: object) -> str:
    """How a task differs from the one before; hashes and missing values are not worth showing."""
    plain = name.replace("_", " ")
    if None in (old, new) or name == "calibration":
        return f"another {plain}"
    return f"{plain} {old} instead of {new}"


def _state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / _STATE).read_bytes())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


class WorkFolder:
    """Finished layers of one task; a folder of another task is emptied.

    Args:
        path: The folder, made if need be.
        task: What is being done, as JSON can hold it: method, formats, calibration, source.
    """

    def __init__(self, path: Path, task: Mapping[str, Any]) -> None:
        self.path = path
        self._task = json.loads(json.dumps(task))
        if _state(path).get("task") != self._task:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            self.finish(0)

    @property
    def finished(self) -> int:
        """Layers that are done."""
        return int(_state(self.path)["finished"])

    def finish(self, layers: int) -> None:
        """Record that this many layers are done."""
        atomic.write(self.path / _STATE, json.dumps({"task": self._task, "finished": layers}))

    def formats(self, find: Callable[[], dict[str, str]]) -> dict[str, str]:
        """The format of each tensor: found once, then kept."""
        try:
            return dict(json.loads((self.path / _FORMATS).read_bytes()))
        except (OSError, ValueError):
            found = find()
            atomic.write(self.path / _FORMATS, json.dumps(found))
            return found

    def save(self, name: str, parts: Parts) -> None:
        """Keep a tensor's parts."""
        np.savez(self._file(name), **{f"part{suffix}": part for suffix, part in parts.items()})  # type: ignore[arg-type]

    def parts(self, name: str) -> Parts:
        """A tensor's parts, read back."""
        with np.load(self._file(name), allow_pickle=False) as file:
            return {key.removeprefix("part"): file[key] for key in file.files}

    def stream(self, name: str, layer: int, shape: tuple[int, ...]) -> Stream:
        """The residual streams before a layer; those before the layer before it are deleted."""
        (self.path / f"{name}-{layer - 2}.f32").unlink(missing_ok=True)
        return Stream(self.path / f"{name}-{layer}.f32", shape)

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.npz"


class Stream:
    """Float32 arrays of one shape in a file, one per text: neither memory nor a memory map holds them all."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self._shape = path, shape
        self._count = int(np.prod(shape))
        path.touch()

    def __getitem__(self, text: int) -> Array:
        values: Array = np.fromfile(self._path, np.float32, self._count, offset=4 * self._count * text)
        return values.reshape(self._shape)

    def __setitem__(self, text: int, values: Array) -> None:
        with self._path.open("r+b") as file:
            file.seek(4 * self._count * text)
            file.write(np.ascontiguousarray(values, np.float32).data)


class Kept:
    """Named arrays of each text, in memory or, given a path, on the disk; `fixed` ones are shared and not kept."""

    def __init__(self, path: Path | None, fixed: Mapping[str, NDArray[Any]]) -> None:
        self._path, self._fixed = path, fixed
        self._values: dict[int, dict[str, NDArray[Any]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, text: int) -> dict[str, NDArray[Any]]:
        if self._path is None:
            return {**self._fixed, **self._values[text]}
        with np.load(self._file(text), allow_pickle=False) as file:
            return {**self._fixed, **{name: file[name] for name in file.files}}

    def __setitem__(self, text: int, values: Mapping[str, NDArray[Any]]) -> None:
        own = {name: array for name, array in values.items() if name not in self._fixed}
        self._count = max(self._count, text + 1)
        if self._path is None:
            self._values[text] = own
        else:
            np.savez(self._file(text), **own)  # type: ignore[arg-type]

    def _file(self, text: int) -> Path:
        return Path(f"{self._path}-{text}.npz")
