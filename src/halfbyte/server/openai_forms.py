"""What form a text must have: OpenAI's `response_format`, and `structured_outputs` as vLLM's clients send it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from halfbyte.errors import UsageError
from halfbyte.server.openai_options import Sampled
from halfbyte.text.forms import Form, JsonObject, JsonSchema, Lark, Regex

_MOST_CHOICES = 1000


class Formed(Sampled):
    """A request that may say what form the text must have."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def form(self) -> Form | None:
        """The form that is asked for; None if any text will do.

        Raises:
            UsageError: Both parameters ask for one, or one says nothing that is known.
        """
        form = None if self.response_format is None else response_format(self.response_format)
        if self.structured_outputs is None:
            return form
        if form is not None:
            raise UsageError("there are both response_format and structured_outputs.", "Give one of the two.")
        return _structured(self.structured_outputs)


def response_format(given: Mapping[str, Any], name: str = "response_format") -> Form | None:
    """The form that the text must have, given as some parameter.

    Raises:
        UsageError: It is of an unknown type, or has no schema.
    """
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonObject()
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if kind == "json_schema" and isinstance(described, Mapping) and isinstance(schema, Mapping):
        return JsonSchema(schema, strict=described.get("strict") is True)
    raise UsageError(
        f"{name} has the type {str(kind)[:40]!r}" + (" without a schema." if kind == "json_schema" else "."),
        "It may be text, json_object, or json_schema with a schema.",
    )


def _structured(given: Mapping[str, Any]) -> Form:
    asked = {name: value for name, value in given.items() if value is not None}
    name, value = next(iter(asked.items()), ("", None))
    form = _WAYS[name](value) if len(asked) == 1 and name in _WAYS else None
    if form is None:
        what = ", ".join(sorted(asked))[:80] or "nothing"
        raise UsageError(
            f"structured_outputs says {what}, which is no form.",
            "Give one of json (a schema), json_object (true), regex, choice (a list of texts), grammar (Lark).",
        )
    return form


def _of_schema(given: object) -> Form | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return JsonSchema(given) if isinstance(given, Mapping) else None


def _of_object(given: object) -> Form | None:
    return JsonObject() if given is True else None


def _of_regex(given: object) -> Form | None:
    return Regex(given) if isinstance(given, str) else None


def _of_choice(given: object) -> Form | None:
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST_CHOICES:
        return None
    texts = [text for text in given if isinstance(text, str) and text]
    return Regex("|".join(map(re.escape, texts))) if len(texts) == len(given) else None


def _of_grammar(given: object) -> Form | None:
    return Lark(given) if isinstance(given, str) else None


_WAYS: Mapping[str, Callable[[object], Form | None]] = {
    "json": _of_schema, "json_object": _of_object, "regex": _of_regex, "choice": _of_choice, "grammar": _of_grammar,
}  # fmt: skip
