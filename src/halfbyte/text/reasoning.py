"""What a model thinks before it answers, told from the answer.

A model that reasons writes its thoughts between two delimiters, at the start of its answer. Which ones shows in its
chat template. Some templates write the first one, or an empty pair, at the end of the prompt. A grammar for the answer
begins where the thoughts end: `ReasoningFormat.before` is for the compilers of `text.grammar`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from halfbyte.text.tools import harmony
from halfbyte.text.tools.events import Mark, ToolParser
from halfbyte.text.tools.reader import Reader, ReaderParser, Steps

_PAIRS = (
    ("<think>", "</think>"),
    ("<|channel>thought", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
)
_SPACE = "BLANK: /[ \\t\\r\\n]{1,8}/"


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model marks what it thinks.

    Attributes:
        open, close: The delimiters.
        keep: Special tokens that the text must show (`TextStream(keep=…)`).
        is_part_of_calls: Whether grammars of calls say themselves where thoughts are.
    """

    open: str
    close: str
    keep: tuple[str, ...]
    is_part_of_calls: ClassVar[bool] = False

    def is_open(self, prompt: str) -> bool:
        """Whether a rendered prompt ends within thoughts, so that the answer begins with them."""
        return prompt.rstrip().endswith(self.open)

    def is_over(self, prompt: str) -> bool:
        """Whether a rendered prompt ends after thoughts, so that the answer has none."""
        return prompt.rstrip().endswith(self.close)

    def before(self, mark: Mark, prompt: str) -> str | None:
        """What comes before the answer, as Lark rules; None if nothing does.

        Args:
            mark: `GrammarCompiler.mark`.
            prompt: As it was rendered.
        """
        if self.is_over(prompt):
            return None
        close = mark(self.close)
        if close.startswith("<"):
            thoughts = [f"thoughts: THOUGHT? {close} BLANK?", "THOUGHT: /(?s:.+)/"]
        else:
            thoughts = ["thoughts: thought BLANK?", f"thought[lazy]: /(?s:.*)/ {close}"]
        begin = "thoughts" if self.is_open(prompt) else f"(BLANK? {self._opening(mark)} thoughts)?"
        return "\n".join([f"before: {begin}", *thoughts, _SPACE])

    def parser(self, prompt: str) -> ToolParser:
        """A parser that tells thoughts (`ReasoningPiece`) from the rest (`TextPiece`) of the answer to a prompt."""
        opened, over = self.is_open(prompt), self.is_over(prompt)
        return ReaderParser(lambda reader: self._read(reader, opened, over))

    def _opening(self, mark: Mark) -> str:
        """The first delimiter as Lark: it may be a special token and a word."""
        special, bracket, word = self.open.partition(">")
        return f"{mark(special + bracket)} {mark(word)}" if word else mark(self.open)

    def _read(self, reader: Reader, opened: bool, over: bool) -> Steps[None]:
        if over:
            return
        if not opened:
            reader.remember()
            yield from reader.skip_space()
            if not (yield from reader.take(self.open)):
                reader.give_back()
                return
        yield from reader.skip_space()
        yield from reader.until(reader.reasoning, self.close)
        yield from reader.skip_space()


class ChannelReasoning(ReasoningFormat):
    """Thoughts and answer in channels of their own."""

    is_part_of_calls = True

    def is_open(self, prompt: str) -> bool:
        """Never: the answer names its channels."""
        return False

    def is_over(self, prompt: str) -> bool:
        """Never: the answer names its channels."""
        return False

    def before(self, mark: Mark, prompt: str) -> str | None:
        """Thoughts, if any, and the head of the channel that the answer is in."""
        channel, message = mark(harmony.CHANNEL), mark(harmony.MESSAGE)
        thoughts = f'{channel} "analysis" {message} THOUGHT? {mark(harmony.END)} {mark(harmony.START)} "assistant"'
        text = "/(?s:.+)/" if channel.startswith("<") else "/[^<]+/"
        return f'before: ({thoughts}){{0,8}} {channel} "final" {message}\nTHOUGHT: {text}'

    def parser(self, prompt: str) -> ToolParser:
        """Calls stay in the text as they are, for the parser of `text.tools`."""
        return ReaderParser(harmony.read_channels)


_CHANNELS = ChannelReasoning(f"{harmony.CHANNEL}analysis", harmony.END, harmony.KEEP)


def reasoning_format(template_source: str, knows: Callable[[str], bool] = lambda text: False) -> ReasoningFormat | None:
    """How a model with this chat template marks its thoughts; None if it does not.

    Args:
        template_source: The chat template.
        knows: Whether a text is a token of the model's vocabulary: some models think though their template knows none.
    """
    if harmony.CHANNEL in template_source:
        return _CHANNELS
    for opening, close in _PAIRS:
        if opening in template_source or close in template_source or (knows(opening) and knows(close)):
            special, bracket, _ = opening.partition(">")
            return ReasoningFormat(opening, close, (special + bracket, close))
    return None
