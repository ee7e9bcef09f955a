"""A profile as one HTML file that needs no network: its events and tables go into the template beside this module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.report.trace import Event

_TEMPLATE = Path(__file__).with_name("page.html")
_TOKENS, _HOST = "tokens", "host"


def page(
    title: str, about: Sequence[str], tables: Sequence[tuple[str, list[list[str]]]], found: Sequence[Event]
) -> str:
    """The page.

    Args:
        about: Lines under the title.
        tables: Title and rows of each, the first row being its head.
        found: Events, in the order of their beginning within each lane.
    """
    values = {
        "title": title,
        "about": list(about),
        "tables": [{"title": name, "head": rows[0], "rows": rows[1:]} for name, rows in tables],
        **_columns(found),
    }
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", text)


def _columns(found: Sequence[Event]) -> dict[str, Any]:
    """Events as columns of numbers that point into lists of distinct texts."""
    lanes, names, phases, details = (
        {text: i for i, text in enumerate(dict.fromkeys(texts))}
        for texts in zip(*((e.lane, e.name, e.phase, e.detail) for e in found), strict=True)
    )
    return {
        "lanes": list(lanes), "names": list(names), "phases": list(phases), "details": list(details),
        "colours": _colours(found, list(names)),
        "events": {
            "lane": [lanes[e.lane] for e in found], "name": [names[e.name] for e in found],
            "phase": [phases[e.phase] for e in found], "detail": [details[e.detail] for e in found],
            "start": [round(e.start_us, 2) for e in found], "dur": [round(e.us, 2) for e in found],
        },
    }  # fmt: skip


def _colours(found: Sequence[Event], names: Sequence[str]) -> list[int]:
    """A number a name: one for all tokens, one for all that the host does, then the device's in alphabetical order."""
    host = {event.name for event in found if event.lane == _HOST}
    device = sorted({event.name for event in found if event.lane not in (_TOKENS, _HOST)})
    numbers = dict.fromkeys(host, 1) | {name: i for i, name in enumerate(device, 2)}
    return [numbers.get(name, 0) for name in names]
