"""`<|channel|>commentary to=functions.name <|constrain|>json<|message|>{…}<|call|>`: gpt-oss, which writes in channels.

The function may also be named before the channel, ` to=functions.name<|channel|>commentary json<|message|>`, as the
template has it.

What the model thinks and says stands in channels too; `text.reasoning` takes those off before calls are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from halfbyte.text.tools import calls
from halfbyte.text.tools.events import Mark, Message, Tool, ToolParser, chosen
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps, ignore

CHANNEL, MESSAGE, START, END, CALL, RETURN = (
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
)
CONSTRAIN = "<|constrain|>"
KEEP = (CHANNEL, MESSAGE, START, END, CALL, RETURN, CONSTRAIN)
_TO = " to="
_RECIPIENT = re.compile(r"to=functions\.([\w.:/-]+)")


class Channels:
    """A message to a function for each call."""

    keep: tuple[str, ...] = KEEP

    def matches(self, template_source: str) -> bool:
        """Whether a chat template is one for this format."""
        return CHANNEL in template_source and "functions." in template_source

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[list[Message], list[Mapping[str, Any]] | None]:
        """As they are."""
        return list(messages), calls.definitions(tools)

    def grammar(self, tools: Sequence[Tool], choice: str, parallel: bool, mark: Mark) -> str:
        """See `ToolFormat`; one call, which ends the answer. The model may think before it."""
        called = chosen(tools, choice)
        channel, message = mark(CHANNEL), mark(MESSAGE)
        following = f'{mark(END)} {mark(START)} "assistant"'
        rules = [
            f'aside: {channel} ("analysis" | "commentary") {message} TEXT? {following}',
            "call: " + " | ".join(f"call_{index}" for index in range(len(called))),
            f'json: " " ({mark(CONSTRAIN)} "json" | "json") {message}',
        ]
        for index, tool in enumerate(called):
            recipient = f" to=functions.{tool.name}"
            rules.append(f"call_{index}: head_{index} json arguments_{index}")
            heads = (
                f"{channel} {calls.quoted(f'commentary{recipient}')}",
                f'{calls.quoted(recipient)} {channel} "commentary"',
            )
            rules.append(f"head_{index}: {' | '.join(heads)}")
            rules.append(f"arguments_{index}: {calls.schema_lark(tool.parameters, strict=tool.strict)}")
        final = f' | {channel} "final" {message} TEXT?' if choice == "auto" else ""
        text = calls.TEXT if channel.startswith("<") else "TEXT: /[^<]+/"
        return calls.lark(f"start: aside{{0,8}} (call{final})", *rules, text)

    def parser(self, tools: Sequence[Tool]) -> ToolParser:
        """See `ToolFormat`."""
        return ReaderParser(_read)


def _read(reader: Reader) -> Steps[None]:
    while begun := (yield from reader.until(reader.text, CHANNEL, f"{_TO}functions.")):
        header = [begun]
        found = yield from reader.until(header.append, MESSAGE)
        name = _RECIPIENT.search("".join(header))
        if not found or name is None:
            reader.give_back()
            continue
        reader.start(name[1])
        yield from reader.skip_space()
        if (yield from reader.json_value(reader.arguments)):
            reader.end()
        yield from reader.until(ignore, CALL, END)


def read_channels(reader: Reader) -> Steps[None]:
    """Thoughts and text without their channels; messages to functions as they are."""
    head = yield from _read_head(reader, _TO)
    while head is not None:
        recipient, channel = _RECIPIENT.search(head), head.rpartition(CHANNEL)[2].strip()
        if recipient:
            reader.text(f"{CHANNEL}commentary {recipient[0]}{MESSAGE}")
            yield from reader.json_value(reader.text)
            reader.text(CALL)
            yield from reader.until(ignore, CALL, END)
        else:
            yield from reader.until(reader.reasoning if channel.startswith("analysis") else reader.text, END, RETURN)
        head = yield from _read_head(reader, START)


def _read_head(reader: Reader, start: str) -> Steps[str | None]:
    """What stands before the text of the next message, its recipient and its channel; None if no message follows.

    Args:
        start: What a head begins with besides the channel; the prompt ends within the first.
    """
    head: list[str] = []
    if (yield from reader.take(start)):
        head.append(start)
    elif not (yield from reader.take(CHANNEL)) and not (yield from reader.until(reader.text, CHANNEL, START)):
        return None
    return "".join(head) if (yield from reader.until(head.append, MESSAGE)) else None


FORMATS = (Channels(),)
