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

_COMPILED = ("cpu/_native*", "gpu/device/_record*")
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
            path = [f"PYTHONPATH={self.source}"] if self.source else ["env", "-u", "PYTHONPATH"]
            alone = shlex.join([*path, self.python, "-m", "halfbyte", "bench", *options])
            raise UsageError(
                f"bench of {self.source or self.python} failed: {_reason(done.stderr, done.returncode)}",
                f"Try it alone: {alone}",
            )

    def why_unusable(self) -> str:
        """Why this Python cannot import all of Halfbyte; empty if it can."""
        done = self._run(["-c", "import halfbyte.cli.app, halfbyte.cpu._native"])
        return _reason(done.stderr, done.returncode) if done.returncode else ""

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
    import halfbyte

    return Build(sys.executable, Path(halfbyte.__file__).parent.parent)


def find_build(other: Path) -> Build:
    """A build by the Python of its environment, or by the folder of its checkout.

    In a checkout, an environment in `.venv` is taken first, then compiled modules in the source folder.

    Raises:
        UsageError: There is none that works; the message says why.
    """
    if other.is_file() and os.access(other, os.X_OK):
        return _usable(Build(str(other.absolute())))
    sources = [source for source in (other / "src", other) if (source / "halfbyte" / "__init__.py").is_file()]
    pythons = [other / python for python in _PYTHONS if (other / python).is_file()]
    if pythons:
        return _usable(Build(str(pythons[0].absolute())))
    if not sources:
        raise UsageError(
            f"{str(other)!r} is not a build of Halfbyte.",
            "Give the folder of a checkout, or the Python of an environment that has Halfbyte.",
        )
    package = sources[0] / "halfbyte"
    if not all(any(package.glob(pattern)) for pattern in _COMPILED):
        raise UsageError(
            f"{package} is not compiled: it has no {_COMPILED[0]} or {_COMPILED[1]}.",
            f"Install it: cd {other} && python -m venv .venv && .venv/bin/pip install .",
        )
    return _usable(Build(sys.executable, sources[0].resolve()))


def _usable(build: Build) -> Build:
    if reason := build.why_unusable():
        raise UsageError(
            f"{build.source or build.python} does not have a Halfbyte that works: {reason}",
            "Install it with this Python's pip, or name another Python.",
        )
    return build


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
