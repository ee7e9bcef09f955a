"""The filters, tests, operators and methods that a chat template may use, each bounded before it runs.

For each there is an estimate of the bytes that it makes at most; the estimate looks at the operands' sizes only, and is
checked by the `Meter` of the rendering. What has no entry here is not offered. Iterators are turned into lists as they
are made, so that no later operation can start work of unknown size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

from jinja2 import filters as jinja_filters
from jinja2 import tests as jinja_tests
from jinja2.exceptions import SecurityError
from jinja2.utils import pass_environment

from halfbyte.text.meter import (
    MAX_BITS,
    MAX_CHARACTERS,
    MAX_ITEMS,
    PER_CHARACTER,
    PER_OBJECT,
    PER_REFERENCE,
    Size,
    current,
    measure,
    nbytes,
)

Cost = Callable[..., int]
"""From the operands of an operation to the bytes that it makes at most."""

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
DIGITS = re.compile(r"\d+")
_MOST_DECIMALS = 400
_LARGEST_FLOAT = 400
"""Characters of the longest float without an exponent."""


def settled(value: Any) -> Any:
    """The value itself, or a list of what an iterator gives."""
    return _listed(value) if isinstance(value, Iterator) else value


def compared(value: Any) -> Any:
    """An operand of a comparison, after a look at its size."""
    value = settled(value)
    measure(value)
    current.get().check_time()
    return value


def text_of(value: Any) -> str:
    """`str(value)`, which is never longer than a text may be."""
    if type(value) is str:
        return value
    current.get().allow(PER_CHARACTER * measure(value).text)
    return str(kept(str(value), 0))


def joined(*values: Any) -> str:
    """What the operator ~ makes."""
    texts = [text_of(value) for value in values]
    current.get().allow(PER_CHARACTER * sum(map(len, texts)))
    return str(kept("".join(texts), 0))


def made(value: Any) -> Any:
    """A list, tuple or dictionary that was just written out."""
    current.get().spend(PER_OBJECT + 2 * PER_OBJECT * len(value))
    return value


def sliced(value: Any) -> Any:
    """What a slice is taken of."""
    each = PER_CHARACTER if isinstance(value, str) else PER_REFERENCE
    current.get().spend(PER_OBJECT + each * _length(value))
    return value


def binary(operator: str, compute: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    """What + - * / // % and ** make."""
    cost = _binary_cost(operator, left, right)
    current.get().allow(cost)
    return kept(compute(left, right), cost)


def call_method(owner: Any, name: str, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Calls a method of a text, list, tuple or dictionary if it is one that templates may use."""
    costs = next((costs for kind, costs in _METHODS.items() if isinstance(owner, kind)), {})
    if name not in costs:
        raise SecurityError(f"it may not call {type(owner).__name__}.{name}")
    args = [compared(value) for value in args]
    for value in kwargs.values():
        measure(value)
    cost = costs[name](owner, *args, **kwargs)
    current.get().allow(cost)
    return kept(method(*args, **kwargs), cost)


def kept(result: Any, cost: int) -> Any:
    """A result, counted: a text as it is, other things as they were estimated. An iterator runs to its end at once."""
    if isinstance(result, Iterator):
        return iter(_listed(result))
    if isinstance(result, str):
        if len(result) > MAX_CHARACTERS:
            raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS:,} characters")
        cost = nbytes(result)
    current.get().spend(cost)
    return result


# --- estimates


def _binary_cost(operator: str, left: Any, right: Any) -> int:
    if operator == "%" and isinstance(left, str):
        return _printf_cost(left, right)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        _check_bits(operator, left, right)
        return PER_OBJECT
    if operator != "*":
        return _shallow(left) + _shallow(right)
    count, items = (left, right) if isinstance(left, int) else (right, left)
    return _shallow(items) * max(count, 0) if isinstance(count, int) else 0


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _shallow(value: Any) -> int:
    """Bytes that a value's own characters or places take in a copy."""
    if isinstance(value, str):
        return PER_CHARACTER * measure(value).characters
    return PER_REFERENCE * _length(value) if isinstance(value, (list, tuple)) else PER_OBJECT * measure(value).items


def _check_bits(operator: str, left: float, right: float) -> None:
    """SecurityError if numbers or their result are too large; a float never is."""
    left_bits, right_bits = (one.bit_length() if isinstance(one, int) else 0 for one in (left, right))
    size = left_bits + right_bits
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        size = left_bits * abs(right)
    if size > MAX_BITS:
        raise SecurityError(f"the result of its operator {operator} is too large")


def _text(value: Any) -> int:
    """Characters of `str(value)` at most."""
    return measure(settled(value)).text


def _characters(count: int) -> int:
    return PER_CHARACTER * count


def _texts(count: int, characters: int) -> int:
    """Bytes of so many texts with so many characters together."""
    return PER_OBJECT * count + PER_CHARACTER * characters


def _free(*_: Any, **__: Any) -> int:
    return 0


def _same(value: Any, *_: Any, **__: Any) -> int:
    return _characters(_text(value))


def _recased(value: Any, *_: Any, **__: Any) -> int:
    """Upper case can be three characters for one."""
    return _characters(3 * _text(value))


def _escaped(value: Any, *_: Any, **__: Any) -> int:
    return _characters(6 * _text(value))


def _split(value: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = value.count(sep) + 1 if sep else len(value) // 2 + 1
    return _texts(min(pieces, maxsplit + 1) if maxsplit >= 0 else pieces, len(value))


def _lines(value: str, *_: Any, **__: Any) -> int:
    return _texts(1 + sum(value.count(end) for end in _LINE_ENDS), len(value))


def _replaced(value: Any, old: Any, new: Any, count: int | None = -1) -> int:
    if not isinstance(value, str) or not isinstance(old, str):
        return _characters(_text(value) * (1 + _text(new)))
    found = value.count(old)
    places = found if count is None or count < 0 else min(count, found)
    return _characters(_text(value) + places * _text(new))


def _join_cost(value: Any, d: Any = "", *_: Any, **__: Any) -> int:
    """`d` is what Jinja2's filter calls the separator."""
    size = measure(value)
    return _characters(size.text + size.items * _text(d))


def _padded(value: Any, width: int = 80, *_: Any) -> int:
    return _characters(_text(value) + max(width, 0))


def _tabs(value: str, tabsize: int = 8) -> int:
    return _characters(len(value) + value.count("\t") * max(tabsize, 0))


def _indented(value: Any, width: int | str = 4, *_: Any, **__: Any) -> int:
    step = len(width) if isinstance(width, str) else max(width, 0)
    text = value if isinstance(value, str) else ""
    lines = 2 + sum(text.count(end) for end in _LINE_ENDS)
    return _characters(_text(value) + lines * step) + PER_OBJECT * lines


def _truncated(value: Any, length: int = 255, killwords: bool = False, end: str = "...", *_: Any, **__: Any) -> int:
    return _characters(_text(value) + _text(end))


def _printf_cost(value: Any, given: Any) -> int:
    """A conversion writes its argument or as many characters as its width or precision says."""
    size = measure(given)
    widths = [int(digits[:10]) for digits in DIGITS.findall(value)]
    if "*" in value:
        widths += [abs(one) for one in (given if isinstance(given, tuple) else [given]) if isinstance(one, int)]
    quoted = Size(size.items, size.characters, 1).text
    return _characters(len(value) + value.count("%") * (max(widths, default=0) + quoted + _LARGEST_FLOAT))


def _format_cost(value: Any, *args: Any, **kwargs: Any) -> int:
    _text(value)
    return _printf_cost(str(value), kwargs or args)


def _copied(value: Any, *_: Any, **__: Any) -> int:
    return PER_OBJECT * (1 + _length(value))


def _sorted(value: Any, *others: Any, **named: Any) -> int:
    """Also bounds the time: each item may be compared with a default that is given."""
    default = sum(measure(one).items for one in (*others, *named.values()))
    if default * _length(value) > MAX_ITEMS:
        raise SecurityError("an operand is too large")
    return 2 * PER_OBJECT * measure(value).items


def _compared_all(value: Any, *_: Any, **__: Any) -> int:
    measure(value)
    return PER_OBJECT


def _batched(value: Any, linecount: int, fill_with: Any = None) -> int:
    return _copied(value) + (PER_REFERENCE * max(linecount, 0) if fill_with is not None else 0)


def _in_slices(value: Any, slices: int, *_: Any, **__: Any) -> int:
    return _copied(value) + PER_OBJECT * max(slices, 0)


def _number(value: Any, *_: Any, **__: Any) -> int:
    if _text(value) > MAX_BITS:
        raise SecurityError("the text of a number is too long")
    return PER_OBJECT


def _rounded(value: Any, precision: int = 0, *_: Any, **__: Any) -> int:
    if not isinstance(precision, int) or abs(precision) > _MOST_DECIMALS:
        raise SecurityError(f"it rounds to more than {_MOST_DECIMALS} digits")
    measure(value)
    return PER_OBJECT


def _json_cost(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> int:
    size = measure(value)
    step = len(indent) if isinstance(indent, str) else max(indent or 0, 0)
    between = 4 + step * size.depth + (measure(separators).characters if separators else 0)
    return _characters((12 if ensure_ascii else 6) * size.characters + size.items * between)


def _small(*values: Any, **__: Any) -> int:
    for value in values:
        measure(value)
    return PER_OBJECT


# --- what is offered


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Hugging Face's `tojson`: unlike Jinja2's own it does not escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Jinja2's `sum` by the sandbox's own +."""
    if attribute is not None:
        iterable = map(jinja_filters.make_attrgetter(environment, attribute), iterable)
    for value in iterable:
        start = environment.call_binop(None, "+", start, value)
    return start


_FILTERS: Mapping[str, Cost] = {
    **dict.fromkeys(("attr", "count", "d", "default", "first", "items", "last", "length"), _free),
    **dict.fromkeys(("string", "safe", "trim"), _same),
    **dict.fromkeys(("capitalize", "lower", "title", "upper"), _recased),
    **dict.fromkeys(("e", "escape", "forceescape"), _escaped),
    **dict.fromkeys(("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "sum"), _copied),
    **dict.fromkeys(("dictsort", "groupby", "sort", "unique"), _sorted),
    **dict.fromkeys(("max", "min"), _compared_all),
    **dict.fromkeys(("float", "int"), _number),
    "abs": _small, "batch": _batched, "center": _padded, "format": _format_cost, "indent": _indented,
    "join": _join_cost, "replace": _replaced, "round": _rounded, "slice": _in_slices, "tojson": _json_cost,
    "truncate": _truncated,
}  # fmt: skip

_SIZED_TESTS = (
    "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan", "<=", "le", "in",
    "lower", "upper", "odd", "even", "divisibleby",
)  # fmt: skip

_STRING: Mapping[str, Cost] = {
    **dict.fromkeys(("lstrip", "removeprefix", "removesuffix", "rstrip", "strip"), _same),
    **dict.fromkeys(("capitalize", "casefold", "lower", "swapcase", "title", "upper"), _recased),
    **dict.fromkeys(("partition", "rpartition"), lambda value, _: _texts(3, len(value))),
    **dict.fromkeys(("count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit",
                     "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "rfind",
                     "rindex", "startswith"), _free),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    "expandtabs": _tabs, "join": lambda separator, value: _join_cost(value, separator), "replace": _replaced,
    "rsplit": _split, "split": _split, "splitlines": _lines,
}  # fmt: skip

_METHODS: Mapping[type, Mapping[str, Cost]] = {
    str: _STRING,
    dict: {"copy": _copied, "get": _free, "items": _free, "keys": _free, "values": _free},
    list: {"copy": _copied, "count": _compared_all, "index": _compared_all},
    tuple: {"count": _compared_all, "index": _compared_all},
}


def filters() -> dict[str, Callable[..., Any]]:
    """All filters by name."""
    own: dict[str, Callable[..., Any]] = {"tojson": to_json, "sum": _sum}
    return {name: _bounded(own.get(name, jinja_filters.FILTERS[name]), cost) for name, cost in _FILTERS.items()}


def tests() -> dict[str, Any]:
    """All tests by name."""
    offered: dict[str, Any] = dict(jinja_tests.TESTS)
    return offered | {name: _bounded(offered[name], _small) for name in _SIZED_TESTS}


def _bounded(function: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    """A filter or test that is asked for its cost first; Jinja2 may pass its own context before the operands."""

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        own = 1 if hasattr(function, "jinja_pass_arg") else 0
        operands = [settled(value) for value in args[own:]]
        estimate = cost(*operands, **kwargs)
        current.get().allow(estimate)
        return kept(function(*args[:own], *operands, **kwargs), estimate)

    return bounded


def _listed(values: Iterator[Any]) -> list[Any]:
    meter, items = current.get(), []
    for value in values:
        meter.spend(PER_REFERENCE)
        items.append(value)
    return items
