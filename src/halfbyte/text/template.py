"""Chat templates: untrusted Jinja2 that turns a conversation into the text a model was trained on.

A template sees plain data only and runs in Jinja2's immutable sandbox, set up as Hugging Face's are. Beyond that, a
deadline is checked in every loop and macro, and operators refuse to build what no prompt needs, so that a hostile
template ends in a `TemplateError`, not in a hang.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from halfbyte.errors import HalfbyteError, TemplateError, UsageError

MAX_CHARACTERS = 8 * 2**20
TIME_LIMIT_S = 5.0

_RAW = "Change the messages, or give the prompt as plain text (--raw)."
_deadline: ContextVar[float] = ContextVar("deadline")


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
        environment = _environment()
        try:
            tree = _guarded(environment.parse(source))
            code = environment.compile(tree)
        except Exception as error:
            raise _failure("The chat template is not valid", error) from error
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """The conversation as text; arguments as for `Tokenizer.render_chat`.

        Raises:
            UsageError: messages that are none.
            TemplateError: with the template's own words if it refuses the conversation; else with what went wrong.
        """
        _check_messages(messages)
        variables = self._special_tokens | {
            "messages": _plain(messages),
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        token = _deadline.set(time.monotonic() + TIME_LIMIT_S)
        try:
            return _join(self._template.generate(variables))
        except HalfbyteError:
            raise
        except _RefusalError as refusal:
            raise _failure("The chat template refused the conversation", refusal) from refusal
        except SecurityError as error:
            raise _failure("The chat template tried what it may not", error) from error
        except Exception as error:
            raise _failure("The chat template failed", error) from error
        finally:
            _deadline.reset(token)


class _RefusalError(Exception):
    """What `raise_exception` raises."""


def _failure(what: str, error: Exception) -> TemplateError:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    return TemplateError(f"{what}: {reason}", _RAW)


def _join(chunks: Iterable[str]) -> str:
    parts, size = [], 0
    for chunk in chunks:
        _check_time()
        size += len(chunk)
        if size > MAX_CHARACTERS:
            raise SecurityError(f"it wrote more than {MAX_CHARACTERS:,} characters")
        parts.append(chunk)
    return "".join(parts)


def _check_time() -> str:
    """Raises once the rendering has taken too long; returns "" to be usable as a template's expression."""
    if time.monotonic() > _deadline.get():
        raise SecurityError(f"it ran for more than {TIME_LIMIT_S:g} seconds")
    return ""


# --- what a template sees


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


def _plain(value: object) -> object:
    """A copy made of plain data, so that a template cannot reach into the caller's objects."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise UsageError(
        f"A message holds a {type(value).__name__}, which a chat template cannot use.",
        "Use text, numbers, lists and dictionaries.",
    )


def _raise_exception(message: object) -> NoReturn:
    raise _RefusalError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Hugging Face's `tojson`: unlike Jinja2's own it does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _make_namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    for name in attributes:
        _check_attribute(name)
    return Namespace(attributes)


def _check_attribute(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name}")


# --- the sandbox


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _result_size(operator, left, right) > MAX_CHARACTERS:
            raise SecurityError(f"the result of its operator {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def check_time(self) -> str:
        return _check_time()

    def concatenate(self, *values: object) -> str:
        """What `~` does."""
        texts = [str(value) for value in values]
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise SecurityError("the result of its operator ~ is too large")
        return "".join(texts)


def _environment() -> _Sandbox:
    """Not optimized: Jinja2's optimizer would run parts of a template while it compiles."""
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], optimized=False
    )
    for name in ("center", "batch", "slice"):
        del environment.filters[name]  # they make any amount out of nothing, and no chat template needs them
    del environment.globals["lipsum"]
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_make_dict, namespace=_make_namespace
    )
    return environment


def _guarded(tree: nodes.Template) -> nodes.Template:
    """A parsed template rewritten so that every loop, macro and concatenation is bounded."""
    for place in tree.find_all(nodes.NSRef):
        _check_attribute(place.attr)
    blocks: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
    for block in blocks:
        check = nodes.ExprStmt(_own_call("check_time", [], block))
        block.body.insert(0, check.set_lineno(block.lineno))
    _BoundedConcat().visit(tree)
    return tree


class _BoundedConcat(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named so by Jinja2
        self.generic_visit(node)
        return _own_call("concatenate", node.nodes, node)


def _own_call(method: str, arguments: list[nodes.Expr], place: nodes.Node) -> nodes.Expr:
    """The syntax tree of a call of one of the sandbox's own methods."""
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(place.lineno)
    return call


def _result_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound of a result's size, in characters, items or bits."""
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "**":
        return _size(left) * abs(right) if isinstance(right, int) else 0
    for count, items in ((left, right), (right, left)):
        if isinstance(count, int) and not isinstance(items, int):
            return count * _size(items)
    return _size(left) + _size(right)


def _size(value: object) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, (str, list, tuple)) else 0
