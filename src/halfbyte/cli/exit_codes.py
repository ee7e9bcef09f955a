"""The exit codes of all commands, and what each says."""

from __future__ import annotations

import signal

from halfbyte import errors

EXIT_BUG = 70
EXIT_MEMORY = 71
EXIT_FILE = 74
EXIT_INTERRUPTED = 130
EXIT_SIGNAL = 128
"""Plus the signal's number."""

MEANINGS = {
    0: "success",
    errors.HalfbyteError.exit_code: "any other error",
    errors.UsageError.exit_code: "wrong usage",
    errors.ModelNotFoundError.exit_code: "model not found",
    errors.InvalidModelError.exit_code: "model damaged",
    errors.UnsupportedModelError.exit_code: "model not supported",
    errors.ContextFullError.exit_code: "context full",
    errors.DeviceError.exit_code: "no such device, or it failed",
    errors.DownloadError.exit_code: "download failed",
    errors.TemplateError.exit_code: "chat template failed",
    errors.GrammarError.exit_code: "grammar failed",
    EXIT_BUG: "a bug in Halfbyte",
    EXIT_MEMORY: "out of memory",
    EXIT_FILE: "file or disk error",
    EXIT_INTERRUPTED: "interrupted (Ctrl-C)",
    EXIT_SIGNAL + signal.SIGTERM: "terminated (SIGTERM)",
}


def table() -> str:
    """Codes and meanings in two columns, as `halfbyte --help` shows them."""
    entries = [f"{code:4}  {meaning}" for code, meaning in MEANINGS.items()]
    half = (len(entries) + 1) // 2
    left, right = entries[:half], [*entries[half:], ""]
    return "\n".join(f"{one:36}{other}".rstrip() for one, other in zip(left, right, strict=False))
