"""What the library logs while a command runs: warnings, as notes on standard error."""

from __future__ import annotations

import logging

from halfbyte.cli.output import note


def show_warnings() -> None:
    """Print the library's warnings from now on."""
    logging.getLogger("halfbyte").addHandler(_Notes(logging.WARNING))


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
