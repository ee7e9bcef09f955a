"""Options that several commands share, declared once and given to a command in the place of one parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Any

Command = Callable[..., None]


def takes(
    parameter: str, options: Mapping[str, tuple[Any, Any]], made: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """Give a command some options in the place of its parameter, which gets what is made of their values.

    Args:
        parameter: Its name.
        options: Annotation and default of each option, by name.
        made: Called with the values, by name.
    """
    mine = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in options.items()
    ]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            command(**values, **{parameter: made(given)})

        own = signature(command, eval_str=True).parameters.values()
        before = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
        at = next(i for i, each in enumerate(before) if each.name == parameter)
        parameters = [*before[:at], *mine, *before[at + 1 :]]
        wrapper.__dict__["__signature__"] = signature(command).replace(parameters=parameters)
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate
