"""What may be given as a prompt, and what is refused with a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from halfbyte.errors import UsageError

Message = Mapping[str, Any]
"""One message of a conversation: `role`, `content`, and what else the chat template knows, such as `tool_calls`."""

Prompt = str | Sequence[Message] | Sequence[int]

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
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, Sequence) or not all(isinstance(text, str) and text for text in strings):
        raise UsageError(
            f"stop is {stop!r}.", "Give a text, or a list of texts that are not empty; leave it out for none."
        )
    return strings
