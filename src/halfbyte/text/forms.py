"""What form an answer's text is to have, as plain data that needs no model yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from halfbyte.text.grammar import Grammar, GrammarCompiler, Otherwise


class Form(Protocol):
    """A form of texts."""

    def grammar(
        self, compiler: GrammarCompiler, *, before: str | None = None, otherwise: Otherwise | None = None
    ) -> Grammar:
        """The grammar of such answers; arguments and errors as for `GrammarCompiler.json_schema`."""
        ...


@dataclass(frozen=True)
class JsonObject(Form):
    """Any JSON object."""

    def grammar(
        self, compiler: GrammarCompiler, *, before: str | None = None, otherwise: Otherwise | None = None
    ) -> Grammar:
        """See `Form`."""
        return compiler.json_object(before=before, otherwise=otherwise)


@dataclass(frozen=True)
class JsonSchema(Form):
    """JSON that is valid by a schema.

    Attributes:
        strict: Whether a keyword that cannot be enforced is an error; else it is left out of account.
    """

    schema: Mapping[str, Any]
    strict: bool = True

    def grammar(
        self, compiler: GrammarCompiler, *, before: str | None = None, otherwise: Otherwise | None = None
    ) -> Grammar:
        """See `Form`."""
        return compiler.json_schema(self.schema, lenient=not self.strict, before=before, otherwise=otherwise)


@dataclass(frozen=True)
class Regex(Form):
    """What a regular expression matches as a whole."""

    pattern: str

    def grammar(
        self, compiler: GrammarCompiler, *, before: str | None = None, otherwise: Otherwise | None = None
    ) -> Grammar:
        """See `Form`."""
        return compiler.regex(self.pattern, before=before, otherwise=otherwise)


@dataclass(frozen=True)
class Lark(Form):
    """What a grammar in Lark's notation derives."""

    text: str

    def grammar(
        self, compiler: GrammarCompiler, *, before: str | None = None, otherwise: Otherwise | None = None
    ) -> Grammar:
        """See `Form`."""
        return compiler.lark(self.text, before=before, otherwise=otherwise)
