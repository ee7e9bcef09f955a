"""What the process needs before anything else: standard streams that are open, signals that end it well, warnings."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from typing import NoReturn

from halfbyte.cli.exit_codes import EXIT_FILE, EXIT_SIGNAL
from halfbyte.cli.logs import show_warnings
from halfbyte.cli.output import print_error


def prepare() -> None:
    """Make the process ready; exits with a sentence if there is nowhere to print to."""
    closed = _open_streams()
    show_warnings()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    if sys.platform.startswith("linux"):
        # Without it, Mesa's Vulkan drivers print an "error:" of their own to standard error.
        os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())
    if 1 in closed:
        print_error("standard output is closed.", "Redirect it to a file, or to /dev/null to discard it.")
        sys.exit(EXIT_FILE)


def _open_streams() -> set[int]:
    """Connect closed standard streams to the null device, lest a file that is opened later takes their place."""
    closed = set()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _connect_to_null(number)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            closed.add(number)
    return closed


def _connect_to_null(number: int) -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)


def _stop(number: int, frame: object) -> NoReturn:
    """End as after an error, so that half-written files are removed."""
    raise SystemExit(EXIT_SIGNAL + number)
