"""Two builds measured in turns, each run in a process of its own, so that what drifts meets both alike.

Memory placement is fixed when a process starts and affects its speed: runs of the same build in different processes
differ by about one per cent, however often each repeats. So whole runs are paired, not repetitions.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import UsageError

_COMPILED = ("cpu/_native*.so", "cpu/_native*.pyd")
_INSTALL = "python -m venv .venv && .venv/bin/pip install ."
_PYTHONS = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")
"""Where the environment of a checkout usually has its Python."""


@dataclass(frozen=True)
class Build:
    """A Halfbyte to be measured: a Python that has it installed, or any Python and a folder to find it in first."""

    python: str
    source: Path | None = None

    def bench(self, options: Sequence[str], output: Path) -> None:
        """Run its `bench`, which appends to a file.

        Raises:
            UsageError: It failed; the message has the reason that it printed.
        """
        done = self._run(["-m", "halfbyte", "bench", *options, "--output", str(output)])
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            raise UsageError(
                f"bench of {self.source or self.python} failed: {_reason(done.stderr, done.returncode)}",
                self._remedy(options),
            )

    def _remedy(self, options: Sequence[str]) -> str:
        if self.source is not None and not _is_compiled(self.source):
            return f"It is not compiled. In its folder: {_INSTALL}"
        where = [f"PYTHONPATH={self.source}"] if self.source else ["-u", "PYTHONPATH"]
        return f"Try it alone: {shlex.join(['env', *where, self.python, '-m', 'halfbyte', 'bench', *options])}"

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run this build's Python, without the folders in which the running build is found."""
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        environment.pop("PYTHONPATH", None)
        if self.source is not None:
            environment["PYTHONPATH"] = str(self.source)
        command = [self.python, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def this_build() -> Build:
    """The one that is running."""
    return Build(sys.executable, Path(__file__).parents[2])


def find_build(other: Path) -> Build:
    """A build by the Python of its environment, or by the folder of its checkout, whose `.venv` comes first.

    Raises:
        UsageError: It is neither.
    """
    if other.is_file() and os.access(other, os.X_OK):
        return Build(str(other.absolute()))
    for python in _PYTHONS:
        if (other / python).is_file():
            return Build(str((other / python).absolute()))
    for source in (other / "src", other):
        if (source / "halfbyte" / "__init__.py").is_file():
            return Build(sys.executable, source.resolve())
    raise UsageError(
        f"{str(other)!r} is not a build of Halfbyte.",
        "Give the folder of a checkout, or the Python of an environment that has Halfbyte.",
    )


def _is_compiled(source: Path) -> bool:
    return any(any((source / "halfbyte").glob(pattern)) for pattern in _COMPILED)


def _reason(printed: str, code: int) -> str:
    """What a failed process said: its error in a line, else the last line, which a traceback ends with."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else lines[-1] if lines else f"exit code {code}."


def in_turns(a: Build, b: Build, options: Sequence[str], outputs: tuple[Path, Path], runs: int) -> Iterator[int]:
    """Measure both `runs` times: A B, B A, A B, …; yields the number of pairs after each."""
    both = list(zip((a, b), outputs, strict=True))
    for turn in range(runs):
        for build, output in both if turn % 2 == 0 else reversed(both):
            build.bench(options, output)
        yield turn + 1
