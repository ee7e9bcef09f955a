"""Errors that a user can cause: a message, a hint what to do, and an exit code.

Every error that a user's input can cause is a `HalfbyteError`; any other exception that escapes is a bug.
"""

from __future__ import annotations

from typing import Self


class HalfbyteError(Exception):
    """Base of every error a user can cause.

    Args:
        message: What is wrong, with the offending value, in one line.
        hint: What to do about it, in one line; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    @classmethod
    def not_installed(cls, what: str, package: str, extra: str = "") -> Self:
        """The error for `what` needing a package that is not installed; an extra of Halfbyte may bring it."""
        wanted = f"'halfbyte[{extra}]'" if extra else package
        return cls(f"{what} needs {package}, which is not installed.", f"Install it: pip install {wanted}")


class UsageError(HalfbyteError):
    """An option or argument that is out of range, empty, or contradicts another."""

    exit_code = 2


class ModelNotFoundError(HalfbyteError):
    """There is no such folder, file or hub id."""

    exit_code = 3


class InvalidModelError(HalfbyteError):
    """A model whose files are damaged, contradictory or missing."""

    exit_code = 4


class UnsupportedModelError(HalfbyteError):
    """A well-formed model that Halfbyte cannot run."""

    exit_code = 5


class ContextFullError(HalfbyteError):
    """There are more tokens than the context holds."""

    exit_code = 6


class DeviceError(HalfbyteError):
    """A device is missing, too small, or failed."""

    exit_code = 7

    @classmethod
    def not_compiled(cls, what: str, error: ImportError) -> DeviceError:
        """The error for a compiled module of the package that cannot be imported; `what` says what it is for."""
        return cls(
            f"Halfbyte's code for {what} is missing or does not fit this Python ({error}).",
            "Install Halfbyte with pip, which compiles it.",
        )


class DownloadError(HalfbyteError):
    """A download failed."""

    exit_code = 8


class TemplateError(HalfbyteError):
    """A chat template refused the conversation, or did something that is not allowed."""

    exit_code = 9


class GrammarError(HalfbyteError):
    """What constrains an answer allows no next token, or failed."""

    exit_code = 10
