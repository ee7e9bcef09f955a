"""Virtual environments for the peers: made once, kept under `.cache/peers`, filled from the package index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.catalog import Peer

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peers"
COMPILERS = "2"
"""Compilers at once, where a package has to be built."""


class PeerError(Exception):
    """Why a peer cannot be measured, in one line."""


def python_of(peer: Peer) -> str:
    """The interpreter that runs a peer, with the peer installed.

    Raises:
        PeerError: It cannot be installed.
    """
    if peer.environment is None:
        return sys.executable
    folder = CACHE / peer.environment
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    marker = folder / f"{peer.engine}.json"
    if not marker.exists() or json.loads(marker.read_text()) != list(peer.requirements):
        print(f"{peer.title}: installing {' '.join(peer.requirements)} (minutes, the first time)", file=sys.stderr)
        run([str(python), "-m", "pip", "install", "--no-input", *peer.requirements], folder / f"{peer.engine}-pip.log")
        if peer.unwanted:
            run([str(python), "-m", "pip", "uninstall", "-y", *peer.unwanted], folder / f"{peer.engine}-uninstall.log")
        marker.write_text(json.dumps(peer.requirements))
    return str(python)


def run(command: list[str], log: Path) -> None:
    """Run a command at low priority, its output in a log.

    Raises:
        PeerError: It failed; with what its output says why.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    building = {"MAX_JOBS": COMPILERS, "CMAKE_BUILD_PARALLEL_LEVEL": COMPILERS}
    with log.open("wb") as out:
        status = subprocess.run(
            [*nice, *command], stdout=out, stderr=out, cwd=ROOT, env=environment() | building
        ).returncode
    if status:
        raise PeerError(f"{reason(log.read_text(errors='replace'), status)} ({log})")


def environment() -> dict[str, str]:
    """This process's environment for another interpreter: without what belongs to this one."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def reason(output: str, status: int) -> str:
    """One line of a failed command's output that says why: the last that names an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    line = (errors or lines or [""])[-1]
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{line[:300]} ({ended})" if line else ended
