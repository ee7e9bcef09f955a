"""Which tokens may come next, so that an answer follows a JSON schema, a regular expression or a grammar.

A `GrammarCompiler` knows a model's tokens as bytes and compiles grammars for them with llguidance. Each answer gets its
own `Constraint`, which makes a bit mask over the vocabulary for every token. Tokens that end an answer are allowed
exactly where the grammar may end. Special tokens are allowed only where a grammar names them; `GrammarCompiler.mark`
says how it does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_CHARACTERS = 2**20
"""Of a schema, a pattern or a grammar."""

WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between the parts of a JSON value: enough for indented JSON, and no endless run of blanks."""

KEPT = 64
"""Grammars that a compiler keeps, those used last."""

_LOST = "The answer cannot follow its grammar any further"


@dataclass(frozen=True)
class Otherwise:
    """Answers that may be given in the place of others.

    Attributes:
        lark: Their grammar.
        after: Whether what comes before the others comes before these, too.
    """

    lark: str
    after: bool = True


class GrammarCompiler:
    """Compiles grammars for one model; made once, used by any thread. What was compiled lately is not compiled again.

    Args:
        tokenizer: Of the model.
        stop_token_ids: Tokens that end an answer.
        vocab_size: How many logits the model gives; the tokenizer's size by default.

    Raises:
        UsageError: llguidance is missing; no token ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop_token_ids: Collection[int], *, vocab_size: int | None = None) -> None:
        self._library = _llguidance()
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        stops = sorted({token_id for token_id in stop_token_ids if 0 <= token_id < self._vocab_size})
        if not stops:
            raise UsageError(
                "The model names no token that ends an answer, so no grammar could end one.",
                "Add eos_token_id to generation_config.json.",
            )
        self._special = tokenizer.special_ids.union(stops)
        vocabulary = _Vocabulary(tokenizer, self._vocab_size, self._special, stops[0])
        self._tokens = self._library.LLTokenizer(vocabulary, eos_token=stops)
        vocabulary.greedy = self._tokens.greedy_tokenize
        self._limits = self._library.LLParserLimits(verbose_errors=False)
        self._made = lru_cache(maxsize=KEPT)(self._compile)

    def json_schema(
        self,
        schema: Mapping[str, object],
        *,
        lenient: bool = False,
        before: str | None = None,
        otherwise: Otherwise | None = None,
    ) -> Grammar:
        """Answers that are JSON and valid by a schema (draft 2020-12), properties in the schema's order.

        Args:
            schema: A JSON schema.
            lenient: Whether keywords and formats that cannot be enforced are left out of account.
            before: Lark rules, one of them named `before`: what comes before the JSON.
            otherwise: What the answer may be instead. Where both begin alike, it must be this.

        Raises:
            UsageError: No schema, or a keyword in it that cannot be enforced.
        """
        if not isinstance(schema, Mapping):
            raise _refused("The JSON schema is no object", f"it is a {type(schema).__name__}")
        options = {"whitespace_pattern": WHITE_SPACE, "lenient": lenient}
        _check_size("The JSON schema", _json(schema))
        answer = {"json_schema": {**schema, "x-guidance": options}}
        return self._compiled("The JSON schema cannot be enforced", answer, before, otherwise)

    def json_object(self, *, before: str | None = None, otherwise: Otherwise | None = None) -> Grammar:
        """Answers that are one JSON object; arguments as for `json_schema`."""
        return self.json_schema({"type": "object"}, before=before, otherwise=otherwise)

    def regex(self, pattern: str, *, before: str | None = None, otherwise: Otherwise | None = None) -> Grammar:
        """Answers that a regular expression matches as a whole, in the syntax of Rust's `regex`, without look-around.

        Raises:
            UsageError: A pattern that is not valid or too complex.
        """
        _check_size("The pattern", pattern)
        made = json.loads(self._library.LLMatcher.grammar_from_regex(pattern))
        return self._compiled("The pattern cannot be enforced", made["grammars"][0], before, otherwise)

    def lark(self, text: str, *, before: str | None = None, otherwise: Otherwise | None = None) -> Grammar:
        """Answers that a grammar derives: llguidance's variant of Lark, with the rule `start`.

        Raises:
            UsageError: A grammar that is not valid or too complex.
        """
        _check_size("The grammar", text)
        return self._compiled("The grammar is not valid", {"lark_grammar": text}, before, otherwise)

    def mark(self, text: str) -> str:
        """How a Lark rule names a delimiter: the special token that is spelt so, or else its characters."""
        token_id = self._tokenizer.token_id(text)
        return f"<[{token_id}]>" if token_id is not None and token_id in self._special else json.dumps(text)

    def _compiled(
        self, what: str, answer: Mapping[str, object], before: str | None, otherwise: Otherwise | None
    ) -> Grammar:
        """A grammar as llguidance describes them, with what comes before it and what may come instead."""
        grammars = [answer]
        if before is not None or otherwise is not None:
            lead = "" if before is None else "before "
            ways = [f"{lead}@answer"]
            grammars = [{**answer, "name": "answer"}]
            if otherwise is not None:
                ways.append(f"{lead * otherwise.after}@otherwise")
                grammars.append({"lark_grammar": otherwise.lark, "name": "otherwise"})
            grammars.insert(0, {"lark_grammar": f"start: {' | '.join(ways)}\n{before or ''}"})
        return self._made(what, _json({"grammars": grammars}))

    def _compile(self, what: str, description: str) -> Grammar:
        with _told(what):
            matcher = self._library.LLMatcher(self._tokens, description, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(what, matcher.get_error())
        return Grammar(matcher, self._vocab_size)


class Grammar:
    """A compiled grammar; made by a `GrammarCompiler`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def start(self) -> Constraint:
        """The constraint of one answer that has no token yet."""
        return Constraint(self._matcher.deep_copy(), self._vocab_size)


class Constraint:
    """Where one answer stands in its grammar. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = -(-vocab_size // 32)

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is complete."""
        return self._matcher.is_accepting()

    def words(self) -> NDArray[np.uint32]:
        """The tokens that may come next: one bit per token, `[ceil(vocab_size / 32)]`, least significant bit first.

        After a token that ended the answer, only such tokens.

        Raises:
            UsageError: The grammar became too complex to follow.
        """
        with _told(_LOST):
            words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        self._check()
        return words[: self._words]

    def accept(self, token_id: int) -> None:
        """Moves on by a token of the answer. What comes after an end is not looked at.

        Raises:
            UsageError: The grammar does not allow the token here.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return
        with _told(_LOST):
            self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(_LOST, self._matcher.get_error())


class _Vocabulary:
    """What llguidance asks of a tokenizer; the names are its own."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, special: Collection[int], stop: int) -> None:
        self.eos_token_id = stop
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.special_token_ids = sorted(token_id for token_id in special if token_id < size)
        self.greedy: Any = None
        self._encode = tokenizer.encode_inside

    def __call__(self, text: str) -> list[int]:
        """Ids of a text that the grammar forces: as the tokenizer cuts it, where that spells just this text."""
        try:
            ids = self._encode(text)
        except HalfbyteError:
            ids = []
        if b"".join(self.tokens[token_id] if token_id < len(self.tokens) else b"" for token_id in ids) == text.encode():
            return ids
        greedy: list[int] = self.greedy(text)
        return greedy


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise UsageError.not_installed("An answer held to a schema or a grammar", "llguidance", "grammar") from error
    return llguidance


def _json(schema: object) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refused("The JSON schema is not JSON", reason) from error


def _check_size(what: str, text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"{what} is {len(text):,} characters long; the limit is {MAX_CHARACTERS:,}.", "Give a shorter one."
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{what} is not valid Unicode: it has a lone surrogate.", "Give it as UTF-8.")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Around calls of llguidance: what it raises is told as a sentence."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is not an Exception
        raise _refused(what, str(error)) from error


def _refused(what: str, reason: str) -> UsageError:
    first = reason.strip().partition("\n<state>")[0]
    return UsageError(f"{what}: {' '.join(first.split())[:300].rstrip('.')}.", "Change it, or ask without it.")
