"""How models call tools: one file per form of calls, found by the chat template's text.

A format brings a conversation into the shape that its template takes, gives the grammar of answers that call tools, and
parses answers. Each file of this folder that offers `FORMATS` is asked whether a template is one for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from halfbyte.text.tools.events import (
    Event,
    ReasoningPiece,
    TextPiece,
    Tool,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    ToolFormat,
    ToolParser,
    read_tools,
)
from halfbyte.text.tools.prompted import Prompted

__all__ = [
    "Event",
    "ReasoningPiece",
    "TextPiece",
    "Tool",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolFormat",
    "ToolParser",
    "read_tools",
    "tool_format",
    "tool_formats",
]


def tool_format(template_source: str) -> ToolFormat:
    """The format of the calls that a model with this chat template makes; by prompt where the template knows none."""
    return next((form for form in tool_formats() if form.matches(template_source)), Prompted())


@cache
def tool_formats() -> tuple[ToolFormat, ...]:
    """All formats; at most one matches a template."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(form for module in modules for form in getattr(module, "FORMATS", ()))
