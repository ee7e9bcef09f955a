"""What a user can get wrong: one line that says what, one hint that says what to do, one exit code.

Every error that a user's input can cause is a `HalfbyteError`; anything else that escapes is a bug.
"""

from __future__ import annotations


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


class UsageError(HalfbyteError):
    """Options or arguments that cannot be meant: out of range, contradictory, empty."""

    exit_code = 2


class ModelNotFoundError(HalfbyteError):
    """No such folder, hub id or file."""

    exit_code = 3


class InvalidModelError(HalfbyteError):
    """A model folder whose contents are damaged, contradictory or missing."""

    exit_code = 4


class UnsupportedModelError(HalfbyteError):
    """A well-formed model that Halfbyte cannot run."""

    exit_code = 5


class ContextFullError(HalfbyteError):
    """More tokens than the context holds."""

    exit_code = 6


class DeviceError(HalfbyteError):
    """A device that is missing, too small, or failed."""

    exit_code = 7

    @classmethod
    def not_compiled(cls, what: str, error: ImportError) -> DeviceError:
        """One of the package's own extension modules cannot be imported; `what` it is for."""
        return cls(
            f"Halfbyte's code for {what} is missing or does not fit this Python ({error}).",
            "Install Halfbyte with pip: it is compiled then.",
        )


class DownloadError(HalfbyteError):
    """A download that could not be made or finished."""

    exit_code = 8


class TemplateError(HalfbyteError):
    """A chat template that refused the conversation or tried what it may not."""

    exit_code = 9
