"""The `halfbyte` command: one module per command, which parses, calls the library and prints.

Answers go to standard output, everything else to standard error. Whatever a command needs beyond
its options is imported inside it, so that `--help` and the first token are quick.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on `sys.argv` and exit with its code."""
    try:
        from halfbyte.cli.app import app
        from halfbyte.cli.process import prepare

        prepare()
        app(prog_name="halfbyte")
    except KeyboardInterrupt:
        sys.exit(130)
