"""Jinja2's immutable sandbox, narrowed until nothing in it can take much time or memory.

A template is parsed by Jinja2, rewritten so that every operation that Jinja2 would leave to Python goes through
`bounded`, and compiled without running any part of it. Loops and calls look at the time; methods are called only if
`bounded` lists them. Set up otherwise as Hugging Face's templates expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from string import Formatter
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace, pass_context
from jinja2.visitor import NodeTransformer

from halfbyte.text import bounded
from halfbyte.text.meter import PER_CHARACTER, PER_OBJECT, current, measure

MAX_SOURCE = 2**16
"""Characters of a template; compiling takes time, and the longest of real models have half as many."""

_CHECKED, _JOINED, _MADE, _SLICED, _TICK = "#checked", "#joined", "#made", "#sliced", "#tick"
"""Filters that a rewritten template has; no template can spell them with a bar."""

_MOST_NAMES_IN_BRANCHES = 2**20
_LONGEST_DATE_FORMAT = 1000
_METHODS_OF = (Cycler, LoopContext)
_JINJAS_OWN = ("_loop_vars", "_block_vars")
"""Keywords that Jinja2 adds to calls, for functions that ask for its context."""


class RefusalError(Exception):
    """What `raise_exception` raises: the template's own words."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all chat templates."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=_shown,
        )
        own = {_CHECKED: bounded.compared, _JOINED: bounded.joined, _MADE: bounded.made, _SLICED: bounded.sliced}
        self.filters = {**bounded.filters(), **own, _TICK: _tick}
        self.tests = dict(bounded.tests())
        self.globals = {
            "range": self.globals["range"], "cycler": Cycler, "joiner": Joiner, "dict": _make_dict,
            "namespace": _make_namespace, "raise_exception": _raise_exception, "strftime_now": _strftime_now,
        }  # fmt: skip
        self._functions = tuple(self.globals.values())

    def code_of(self, source: str) -> Any:
        """A template's code. Raises what Jinja2 raises for a template that is not valid, and SecurityError."""
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it is {len(source):,} characters long; the limit is {MAX_SOURCE:,}")
        tree = self.parse(source)
        _check_branches(tree)
        for place in tree.find_all(nodes.NSRef):
            _check_attribute(place.attr)
        if tree.find(nodes.ScopedEvalContextModifier):
            raise SecurityError("it may not use autoescape")
        return self.compile(_Rewriter().visit(tree).set_environment(self))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return bounded.binary(operator, self.binop_table[operator], left, right)

    def call(__self, __context: Context, __target: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls what a template may call; the names leave all keywords to the template's own functions."""
        meter = current.get()
        meter.spend(PER_OBJECT)
        owner = getattr(__target, "__self__", None)
        if isinstance(__target, BuiltinMethodType) or isinstance(owner, str):
            named = {name: value for name, value in kwargs.items() if name not in _JINJAS_OWN}
            return bounded.call_method(owner, __target.__name__, __target, args, named)
        __self._check_callable(__target)
        if isinstance(owner, LoopContext):
            args = tuple(map(bounded.compared, args))
        with meter.deeper():
            return bounded.kept(super().call(__context, __target, *args, **kwargs), 0)

    def _check_callable(self, target: Any) -> None:
        known = isinstance(target, (Macro, BlockReference, LoopContext, Joiner, Undefined, _Format))
        method = isinstance(target, MethodType) and isinstance(target.__self__, (*_METHODS_OF, _Generation))
        if not (known or method or any(target is function for function in self._functions)):
            raise SecurityError(f"it may not call a {type(target).__name__}")

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            measure(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with a bound; Jinja2 asks for it wherever a template reaches for a method."""
        if not isinstance(value, (MethodType, BuiltinMethodType)) or value.__name__ not in ("format", "format_map"):
            return None
        text = value.__self__
        return _Format(self, text, value.__name__ == "format_map") if isinstance(text, str) else None


def _check_branches(tree: nodes.Template) -> None:
    """Jinja2 copies its table of names for each branch."""
    names = {name.name for name in tree.find_all(nodes.Name)}
    branches = sum(1 for _ in tree.find_all((nodes.If, nodes.For, nodes.Macro, nodes.Scope, nodes.With, nodes.Block)))
    branches += sum(1 for _ in tree.find_all((nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)))
    if len(names) * branches > _MOST_NAMES_IN_BRANCHES:
        raise SecurityError("it has too many names and branches")


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


# --- text


@pass_context
def _shown(context: Context, value: Any) -> str:
    """What is written for a value. That it wants the context keeps Jinja2 from computing anything while it compiles."""
    text = bounded.text_of(value)
    current.get().spend(PER_CHARACTER * len(text))
    return text


class _Format:
    """A text's `format`."""

    def __init__(self, environment: Sandbox, text: str, takes_mapping: bool) -> None:
        self._environment = environment
        self._text = text
        self._takes_mapping = takes_mapping

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if type(self._text) is not str:
            raise SecurityError("it may not format text that is marked as safe")
        mapping = args[0] if self._takes_mapping else kwargs
        return _BoundedFormatter(self._environment).vformat(self._text, () if self._takes_mapping else args, mapping)


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        widest = max((int(digits[:10]) for digits in bounded.DIGITS.findall(format_spec)), default=0)
        cost = PER_CHARACTER * (measure(value).text + widest)
        current.get().allow(cost)
        return str(bounded.kept(super().format_field(value, format_spec), cost))

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        current.get().allow(PER_CHARACTER * 10 * measure(value).text)
        return bounded.kept(super().convert_field(value, conversion), 0)

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return Formatter.get_value(self, key, args, kwargs)


# --- functions


def _tick(_: object) -> str:
    """Runs in every turn of a loop and every call of a macro."""
    current.get().spend(2 * PER_OBJECT)
    return ""


def _raise_exception(message: object) -> NoReturn:
    raise RefusalError(bounded.text_of(message))


def _strftime_now(format: str) -> str:
    if len(format) > _LONGEST_DATE_FORMAT:
        raise SecurityError("a date's format is too long")
    return datetime.now().strftime(format)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    given = [bounded.compared(value) for value in args]
    return bounded.made(dict(*given, **kwargs))  # type: ignore[no-any-return]


def _make_namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = _make_dict(*args, **kwargs)
    for name in attributes:
        _check_attribute(name)
    return Namespace(attributes)


def _check_attribute(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name}")


# --- rewriting


class _Rewriter(NodeTransformer):
    """Puts a bounded operation or a check wherever a compiled template would leave something to Python."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802 - named so by Jinja2
        """Fixed text is written like any other, so that a loop over it is counted."""
        return nodes.Const(node.data).set_lineno(node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_JOINED, *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _checked(node.expr)
        for operand in node.ops:
            operand.expr = _checked(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(_SLICED, node.node)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MADE, node) if node.ctx == "load" else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _checked(node.key)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(_MADE, node)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._ticking(node)

    def _ticking(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        nothing = nodes.Const(None)
        nothing.set_lineno(node.lineno)
        tick = _filtered(_TICK, nothing)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return node


def _checked(operand: nodes.Expr) -> nodes.Expr:
    return operand if isinstance(operand, nodes.Const) else _filtered(_CHECKED, operand)


def _filtered(name: str, operand: nodes.Expr, *others: nodes.Expr) -> nodes.Expr:
    """An expression passed through one of the sandbox's own filters."""
    call = nodes.Filter(operand, name, list(others), [], None, None)
    call.set_lineno(operand.lineno)
    return call
