"""Pieces of a conversation, as some protocols send them, become messages as chat templates take them."""

from __future__ import annotations

from typing import Any, Literal

_BETWEEN = "\n\n"
_PRIVATE = "x-anthropic-"


def is_private(text: object) -> bool:
    """Whether a text of the system is meant for Anthropic's servers.

    Such a text changes with every request, and a prompt that begins with one would never be found in the KV cache.
    """
    return isinstance(text, str) and text.startswith(_PRIVATE)


class Turns:
    """Messages as they grow.

    Neighbours of one role become one message, as many templates refuse two in a row; their texts are paragraphs of it.
    Coding agents also send texts of the system in the midst of a conversation, where many templates refuse them: there,
    they are the user's. Each result of a call is a message of its own.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}

    def say(self, role: Literal["system", "user", "assistant"], text: str) -> None:
        """Add a text."""
        begun = any(message["role"] != "system" for message in self.messages)
        self._extend(self._turn("user" if role == "system" and begun else role), "content", text)

    def think(self, text: str) -> None:
        """Add what the model thought."""
        self._extend(self._turn("assistant"), "reasoning_content", text)

    def call(self, call_id: str, name: str, arguments: object) -> None:
        """Add a call of a function. Its arguments are an object, or the JSON of one."""
        self._names[call_id] = name
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._turn("assistant").setdefault("tool_calls", []).append(call)

    def result(self, call_id: str, text: str) -> None:
        """Add what a call gave."""
        made = {"role": "tool", "tool_call_id": call_id, "content": text}
        if call_id in self._names:
            made["name"] = self._names[call_id]
        self.messages.append(made)

    def _turn(self, role: str) -> dict[str, Any]:
        if not self.messages or self.messages[-1]["role"] != role:
            self.messages.append({"role": role, "content": ""})
        return self.messages[-1]

    def _extend(self, turn: dict[str, Any], name: str, text: str) -> None:
        before = turn.get(name)
        turn[name] = f"{before}{_BETWEEN}{text}" if before and text else before or text
