"""What an answer may say: which tokens may come next, given those that have come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from halfbyte.errors import GrammarError, HalfbyteError, UsageError
from halfbyte.plan.drawing import Allowed, UInt32


class Constraint(Allowed, Protocol):
    """What may come in one answer, as it grows."""

    def accept(self, token_id: int) -> None:
        """Take the next token of the answer, its stop token included."""
        ...


class Grammar(Protocol):
    """What answers may be. A stop token has to be allowed where an answer may end."""

    def start(self) -> Constraint:
        """What may come in an answer of which there is nothing yet."""
        ...


class Guarded(Constraint):
    """A constraint of which every failure is a sentence, so that it ends its own answer only.

    Its methods raise HalfbyteError.
    """

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def words(self) -> UInt32:
        """As `Allowed` says."""
        with _as_sentences():
            return self._constraint.words()

    def accept(self, token_id: int) -> None:
        """As `Constraint` says."""
        with _as_sentences():
            self._constraint.accept(token_id)


def started(grammar: Grammar | None) -> Guarded | None:
    """The constraint of a new answer.

    Raises:
        UsageError: What was given is no grammar.
    """
    if grammar is None:
        return None
    if not callable(getattr(grammar, "start", None)):
        raise UsageError(f"grammar is {grammar!r}.", "Give an object with a method start(), or leave grammar out.")
    return Guarded(grammar.start())


@contextmanager
def _as_sentences() -> Iterator[None]:
    try:
        yield
    except HalfbyteError:
        raise
    except Exception as error:
        raise GrammarError(
            f"the grammar failed with {type(error).__name__}: {error}.", "Try a simpler grammar, or leave it out."
        ) from error
