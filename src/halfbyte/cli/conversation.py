"""The conversation of `chat`: its messages, the model that answers them, and how answers are asked for and shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from halfbyte.cli.loading import Chosen
from halfbyte.cli.output import note
from halfbyte.errors import ContextFullError, UsageError

if TYPE_CHECKING:
    from halfbyte.answer import Generation
    from halfbyte.model import Model

WhenFull = Literal["stop", "drop"]
Turns = list[dict[str, str]]
Show = Callable[[], AbstractContextManager[Callable[[str], None]]]
"""Begins to show an answer: what it gives is called with each piece of text."""

_ROOM = 4
"""Dropping turns frees this part of the context for the answer, if `max_tokens` does not ask for less."""

_WHEN_FULL: dict[WhenFull, str] = {
    "stop": "/reset begins a new conversation, /save FILE keeps this one, /set when_full drop forgets old turns.",
    "drop": "Write a shorter message, or start with a larger --context.",
}


@dataclass
class Conversation:
    """The messages so far and the model that answers them.

    Attributes:
        chosen: How the model was asked for; others are loaded the same way.
        arguments: Keyword arguments of `Model.stream`.
        when_full: What happens to a message that the context has no room for: `stop` refuses it, `drop` forgets the
            oldest turns.
        turns: Messages of the user and the assistant, always in pairs.
        attached: Texts that go with the next message.
        last: The last answer, with its figures.
    """

    model: Model
    chosen: Chosen
    arguments: dict[str, Any]
    show: Show
    system: str | None = None
    when_full: WhenFull = "stop"
    turns: Turns = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    last: Generation | None = None

    @property
    def messages(self) -> Turns:
        """The system message, if any, and all turns."""
        return self._with_system(self.turns)

    def say(self, text: str) -> None:
        """Show the answer to `text` and what is attached, and keep both.

        What came before an error or Ctrl-C is kept as the answer; if nothing came, `text` is forgotten too.

        Raises:
            HalfbyteError: As `Model.stream`.
        """
        content = "\n\n".join([text, *self.attached])
        self.attached.clear()
        self._answer([*self.turns, {"role": "user", "content": content}])

    def regenerate(self) -> None:
        """Have the last message answered again; the answer before is kept if nothing comes.

        Raises:
            HalfbyteError: As `Model.stream`, or there is no answer yet.
        """
        if not self.turns:
            raise UsageError("there is no answer to replace.", "Say something first.")
        self._answer(self.turns[:-1])

    def attach(self, name: str, text: str) -> None:
        """Have a file's text go with the next message, in a fence longer than any in it."""
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
        self.attached.append(f"{name}:\n{fence}\n{text.rstrip()}\n{fence}")

    def begin(self, system: str | None, turns: Turns) -> None:
        """Put another conversation in the place of this one."""
        self.system, self.turns, self.last = system, turns, None
        self.attached.clear()

    def switch(self, name: str) -> None:
        """Go on with another model; if it cannot be loaded, with the one before.

        Raises:
            HalfbyteError: As `load`.
        """
        from halfbyte.model import locate

        run = replace(self.chosen.run, adapters={}, merge=None)  # adapters are for one model
        wanted = replace(self.chosen, model=name, revision=None, run=run)
        locate(name, None, wanted.offline)
        self.model.close()  # memory may not hold both
        try:
            self.model = wanted.load()
        except BaseException:
            self.model = self.chosen.load()
            raise
        self.chosen, self.last = wanted, None

    def context_used(self) -> int:
        """Tokens of the conversation so far."""
        return self._tokens(self.messages) if self.turns else 0

    def _tokens(self, messages: Turns) -> int:
        return len(self.model.encode(messages, template_variables=self.arguments.get("template_variables")))

    def _answer(self, turns: Turns) -> None:
        if self.when_full == "drop":
            turns = self._shortened(turns)
        parts: list[str] = []
        try:
            with closing(self.model.stream(self._with_system(turns), **self.arguments)) as stream, self.show() as write:
                for token in stream:
                    parts.append(token.text)
                    write(token.text)
        except ContextFullError as error:
            error.hint = _WHEN_FULL[self.when_full]
            raise
        finally:
            if answer := "".join(parts):
                self.turns = [*turns, {"role": "assistant", "content": answer}]
                self.last = stream.result()
        if (result := stream.result()).finish_reason == "context":
            remedy = _WHEN_FULL["stop"] if self.when_full == "stop" else "The next message makes room."
            note(f"(stopped: the context is full. {remedy})")
        elif result.finish_reason == "length":
            note(f"(stopped after {result.new_tokens} tokens; /set max_tokens allows more.)")

    def _shortened(self, turns: Turns) -> Turns:
        """The latest turns that leave room for an answer; the last message always stays."""
        context = self.model.plan.context
        room = min(self.arguments["max_tokens"], context // _ROOM)
        kept = turns
        while len(kept) > 1 and self._tokens(self._with_system(kept)) + room > context:
            kept = kept[2:]
        if dropped := (len(turns) - len(kept)) // 2:
            note(f"(the context is full: forgot the oldest {dropped} of {len(turns) // 2} turns)")
        return kept

    def _with_system(self, turns: Sequence[dict[str, str]]) -> Turns:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *turns]
