"""Two builds measured in turns, each run in a process of its own, so that what drifts meets both alike.

A process keeps the places in memory that it was given, and with them a speed of its own: runs of the same build in
other processes differ by about a per cent, however often each repeats. So it is runs that are paired, not repetitions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import UsageError


@dataclass(frozen=True)
class Build:
    """A Halfbyte to be measured: a Python that has it, and a folder to find it in first, if it is not installed."""

    python: str
    source: Path | None = None

    def bench(self, options: Sequence[str], output: Path) -> None:
        """Run its `bench`, which appends to a file.

        Raises:
            UsageError: It failed.
        """
        environment = dict(os.environ)
        if self.source is not None:
            environment["PYTHONPATH"] = str(self.source)
        command = [self.python, "-m", "halfbyte", "bench", *options, "--output", str(output)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise UsageError(
                f"bench of {self.source or self.python} failed: {words[0] if words else done.returncode}",
                f"Try it alone: {' '.join(command)}",
            )


def this_build() -> Build:
    """The one that is running."""
    import halfbyte

    return Build(sys.executable, Path(halfbyte.__file__).parent.parent)


def find_build(other: Path) -> Build:
    """A build by the Python of its environment, or by the folder of its checkout.

    Raises:
        UsageError: It is neither.
    """
    for source in (other / "src", other):
        if (source / "halfbyte" / "__init__.py").is_file():
            return Build(sys.executable, source.resolve())
    if other.is_file() and os.access(other, os.X_OK):
        return Build(str(other.absolute()))
    raise UsageError(
        f"{str(other)!r} is no build of Halfbyte.", "Give the folder of a checkout, or the Python of an environment."
    )


def in_turns(a: Build, b: Build, options: Sequence[str], outputs: tuple[Path, Path], runs: int) -> Iterator[int]:
    """Measure both so many times: A B, B A, A B, …; the number of pairs after each."""
    both = list(zip((a, b), outputs, strict=True))
    for turn in range(runs):
        for build, output in both if turn % 2 == 0 else reversed(both):
            build.bench(options, output)
        yield turn + 1
