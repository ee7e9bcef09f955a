"""What may be given as a prompt, and what is refused with a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from halfbyte.errors import UsageError

Message = Mapping[str, Any]
"""One message of a conversation: `role`, `content`, and what else the chat template knows, such as `tool_calls`."""

Prompt = str | Sequence[Message] | Sequence[int]

BREAKERS = ("\n", ":", '"', "*")
"""What breaks a repetition for DRY unless something else is asked for; as in llama.cpp."""
MOST_BREAKERS = 64
LONGEST_BREAKER = 40

_FORMS = "Give a text, a list of messages, or a list of token ids."


def check_prompt(prompt: object) -> None:
    """Refuse what is empty or no prompt at all.

    Raises:
        UsageError: It is.
    """
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise UsageError("the prompt is bytes.", "Decode it first: prompt.decode().")
    if isinstance(prompt, Mapping) or not hasattr(prompt, "__len__") or not hasattr(prompt, "__getitem__"):
        raise UsageError(f"the prompt is {prompt!r}.", _FORMS)
    if not len(prompt):
        raise UsageError("the prompt is empty.", "Give it some text.")


def is_chat(prompt: Sequence[Message] | Sequence[int]) -> TypeGuard[Sequence[Message]]:
    """Whether a prompt that is not text is messages; else it is token ids.

    Raises:
        UsageError: It is a list of something else.
    """
    kinds = [isinstance(part, Mapping) for part in prompt]
    other = next((part for part, message in zip(prompt, kinds, strict=True) if not message), None)
    if isinstance(other, str) or (any(kinds) and other is not None):
        what = "texts" if isinstance(prompt[0], str) else "messages and other things"
        raise UsageError(f"the prompt is a list of {what}: {other!r}.", f"{_FORMS} Several prompts take several calls.")
    return all(kinds)


def stop_strings(stop: str | Sequence[str]) -> Sequence[str]:
    """The strings that end an answer.

    Raises:
        UsageError: They are not strings, or one is empty.
    """
    return _texts("stop", stop, "leave it out for none")


def sequence_breakers(texts: str | Sequence[str]) -> Sequence[str]:
    """The texts that no repetition reaches over, for DRY.

    Raises:
        UsageError: They are not texts, one is empty or too long, or there are too many.
    """
    breakers = _texts("dry_sequence_breakers", texts, "an empty list is none")
    if len(breakers) > MOST_BREAKERS:
        raise UsageError(
            f"dry_sequence_breakers has {len(breakers)} texts.", f"It may have at most {MOST_BREAKERS}; leave some out."
        )
    for text in breakers:
        if len(text) > LONGEST_BREAKER:
            raise UsageError(
                f"dry_sequence_breakers has a text of {len(text)} characters.",
                f"Each may have at most {LONGEST_BREAKER}; shorten it.",
            )
    return breakers


def _texts(option: str, given: str | Sequence[str], none: str) -> Sequence[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise UsageError(f"{option} is {given!r}.", f"Give a text, or a list of texts that are not empty; {none}.")
    return texts
