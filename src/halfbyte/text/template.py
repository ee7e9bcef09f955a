"""Chat templates: untrusted Jinja2 that turns a conversation into the text a model was trained on.

A template sees plain data only and runs in a sandbox where every operation is bounded, so that a hostile template ends
in a `TemplateError`, not in a hang. Messages are brought into the shape that templates expect, as transformers does;
beyond that, arguments of calls become objects, for clients send them as JSON text, and a call's message gets an empty
content where a template fails without one, for clients send none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from halfbyte.errors import HalfbyteError, TemplateError, UsageError
from halfbyte.text.meter import MAX_CHARACTERS, MAX_DEPTH, Meter, current
from halfbyte.text.sandbox import RefusalError, Sandbox

TIME_LIMIT_S = 5.0

CONTINUED = "content"
"""What `continue_final_message` continues unless it names another part of the message."""

_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Where the text to be continued ends, spelt as in transformers: some templates look for it."""

_RAW = "Change the messages, or give the prompt as plain text (raw=True)."
_PROBE, _PROBE_ID = "halfbyte", "halfbyte1"
_EMPTY: Mapping[str, str] = MappingProxyType({"content": ""})
_AFTER_CALL = (
    {"role": "tool", "tool_call_id": _PROBE_ID, "name": "probe", "content": "1"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "?"},
)
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which clients send what a model thought; the first is what templates read."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja2 source.
        special_tokens: What the template sees as `bos_token`, `eos_token` and so on.

    Raises:
        TemplateError: the source is not valid, or uses what is not offered.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        sandbox = _sandbox()
        try:
            code = sandbox.code_of(source)
        except Exception as error:
            raise _failure("The chat template is not valid", error) from error
        self._template = jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None))

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool | str = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text; arguments as for `Tokenizer.render_chat`.

        Raises:
            UsageError: messages that are none, no text to continue, or a variable that cannot be set.
            TemplateError: with the template's own words if it refuses the conversation; else with what went wrong.
        """
        _check_messages(messages)
        _check_variables(variables)
        given = [self._prepared(_plain(message)) for message in messages]
        final = ""
        if continue_final_message:
            part = continue_final_message if isinstance(continue_final_message, str) else CONTINUED
            final = _tagged(given[-1], part)
        text = self._rendered(
            {
                **_plain(variables or {}),
                "messages": given,
                "tools": _plain(tools),
                "documents": _plain(documents),
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
        )
        return _cut(text, final) if continue_final_message else text

    def _rendered(self, variables: Mapping[str, object]) -> str:
        token = current.set(Meter(TIME_LIMIT_S, _characters(variables)))
        try:
            return _join(self._template.generate({**self._special_tokens, **variables}))
        except HalfbyteError:
            raise
        except RefusalError as refusal:
            raise _failure("The chat template refused the conversation", refusal) from refusal
        except SecurityError as error:
            raise _failure("The chat template tried what it may not", error) from error
        except Exception as error:
            raise _failure("The chat template failed", error) from error
        finally:
            current.reset(token)

    def _prepared(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message as transformers hands it to templates, its parts as text where the template knows no parts."""
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[key] for key in _REASONING if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        content = message.get("content")
        if isinstance(content, list) and not self._reads_parts:
            message["content"] = "\n".join(_text_of_part(part) for part in content)
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            if "content" not in message and self._wants_content:
                message["content"] = ""
            change = _text_of_arguments if self._takes_arguments_as_text else _object_of_arguments
            message["tool_calls"] = [_with_arguments(call, change) for call in calls]
        return message

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template takes a message's content as a list of parts: it finds the text in one."""
        parts = [{"type": "text", "text": _PROBE}]
        variables = {"messages": [{"role": "user", "content": parts}], "tools": None, "documents": None}
        try:
            text = self._rendered({**variables, "add_generation_prompt": False})
        except TemplateError:
            return False
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text

    @cached_property
    def _takes_arguments_as_text(self) -> bool:
        """Whether the template takes the arguments of a call as JSON text, and as no object."""
        return not self._renders_call({_PROBE: 1}) and self._renders_call(json.dumps({_PROBE: 1}))

    @cached_property
    def _wants_content(self) -> bool:
        """Whether the template takes a message with calls only if it has a content, be it an empty one."""
        arguments = json.dumps({_PROBE: 1}) if self._takes_arguments_as_text else {_PROBE: 1}
        return any(
            self._renders_call(arguments, after=after) and not self._renders_call(arguments, content={}, after=after)
            for after in ((), _AFTER_CALL)
        )

    def _renders_call(
        self, arguments: object, *, content: Mapping[str, str] = _EMPTY, after: Sequence[Mapping[str, str]] = ()
    ) -> bool:
        call = {"id": _PROBE_ID, "type": "function", "function": {"name": "probe", "arguments": arguments}}
        made = {"role": "assistant", **content, "tool_calls": [call]}
        messages = [{"role": "user", "content": "?"}, made, *map(dict, after)]
        try:
            text = self._rendered(
                {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
            )
        except TemplateError:
            return False
        return _PROBE in text


def _failure(what: str, error: Exception) -> TemplateError:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    return TemplateError(f"{what}: {reason}", _RAW)


def _join(chunks: Iterable[str]) -> str:
    parts, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_CHARACTERS:
            raise SecurityError(f"it wrote more than {MAX_CHARACTERS:,} characters")
        parts.append(chunk)
    return "".join(parts)


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    """One for all templates, which cannot change it."""
    return Sandbox()


# --- a message that goes on


def _tagged(message: dict[str, Any], part: str) -> str:
    """Marks where the text of a message ends; returns that text."""
    value = message.get(part)
    if isinstance(value, list):
        block = next((each for each in reversed(value) if isinstance(each, dict) and "text" in each), None)
        if block is not None and isinstance(block["text"], str):
            block["text"] += _TAG
            return str(block["text"]).removesuffix(_TAG)
    if not isinstance(value, str):
        raise UsageError(
            f"The last message has no text under {part[:80]!r} that could be continued.",
            "Give it one, or leave out continue_final_message.",
        )
    for name in _REASONING if part in _REASONING else (part,):
        if message.get(name) == value:
            message[name] = value + _TAG
    return value


def _cut(text: str, final: str) -> str:
    """A rendered conversation up to where its last message ends."""
    place = text.rfind(_TAG.strip())
    if place < 0 or final.strip() not in text:
        raise TemplateError(
            "The chat template does not write the last message as it is, so it cannot be continued.", _RAW
        )
    # A template that trims messages has taken off the tag's space: then the text's own is gone as well.
    return text[:place] if text.startswith(_TAG, place) else text[:place].rstrip()


# --- what a template sees


def _check_variables(variables: object) -> None:
    if variables is None:
        return
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise UsageError(
            "The variables of a chat template are no table of names.", 'Give them as {"enable_thinking": false}.'
        )
    taken = next((name for name in variables if name in _RESERVED), None)
    if taken is not None:
        raise UsageError(
            f"{taken!r} cannot be set as a variable of the chat template.", "Give it as an argument of its own."
        )


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise UsageError(
            "The conversation holds no messages.", 'Give a list like [{"role": "user", "content": "Hello"}].'
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UsageError(
                f"Message {index} is not a dictionary with a role.", 'Give it as {"role": "user", "content": "Hello"}.'
            )


def _plain(value: object, depth: int = 0) -> Any:
    """A copy made of plain data, so that a template cannot reach into the caller's objects."""
    if depth > MAX_DEPTH:
        raise UsageError(f"A message is nested more than {MAX_DEPTH} levels deep.", "Give plainer data.")
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise UsageError(
        f"A message holds a {type(value).__name__}, which a chat template cannot use.",
        "Use text, numbers, lists and dictionaries.",
    )


def _text_of_part(part: object) -> str:
    """The text of a part of a message."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise UsageError(
            f"A message has a part of type {str(kind)[:80]!r}, which this model's chat template does not take.",
            'Give parts like {"type": "text", "text": "Hello"}.',
        )
    return text


def _with_arguments(call: Any, change: Callable[[Any], Any]) -> Any:
    """A call with other arguments."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": change(function["arguments"])}}


def _object_of_arguments(arguments: Any) -> Any:
    """Arguments as an object; text that holds none stays as it is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return _plain(value) if isinstance(value, dict) else arguments


def _text_of_arguments(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _characters(value: object) -> int:
    """Characters in all texts of plain data."""
    if isinstance(value, Mapping):
        return sum(_characters(key) + _characters(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 0
