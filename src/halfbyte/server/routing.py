"""Which of several equal replicas answers a request: the one whose KV cache holds its beginning, unless that is busy.

The order of replicas for a beginning comes from rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings
to increase hit rates", 1998): when one goes, only its own beginnings move. The first in that order is taken whose load
is below a bound (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2018, arXiv:1608.01350).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from halfbyte.server.turns import is_private

SLACK = 1.25
"""The most that a replica may have to do, in shares that are equal for all."""
FEW = 4
"""So many requests are answered together at little cost: they stay where their beginning is, whatever others do."""
BEGINNING = 4096
"""Characters of a first message, or of a prompt, that count. What follows may differ: questions about one text."""
_SYSTEM = ("system", "developer")


def choose(key: bytes, loads: Mapping[str, int], sequences: int) -> str:
    """The replica that a request goes to.

    Args:
        key: What `beginning` made of the request.
        loads: The requests that each replica answers now, by its name; at least one.
        sequences: Answers that a replica computes at once; more would wait there.
    """
    most = max(min(FEW, sequences), math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads)))
    order = ranked(key, loads)
    return next((name for name in order if loads[name] < most), order[0])


def ranked(key: bytes, names: Iterable[str]) -> list[str]:
    """Names of replicas in the order in which they should have a beginning: a random one that `key` decides."""
    return sorted(names, key=lambda name: blake2b(name.encode(), key=key, digest_size=16).digest())


def beginning(body: Mapping[str, Any]) -> bytes:
    """32 bytes that are equal for requests whose prompts begin alike: by model, system texts and first message.

    Args:
        body: A request's JSON as it came, in any protocol; nothing about it is sure.
    """
    parts: list[Any] = [body.get("model"), _lasting(body.get("system")), body.get("instructions")]
    for name in ("messages", "input"):
        given = body.get(name)
        if isinstance(given, list):
            leading = _leading(given)
            parts += [*given[:leading], _start(given[leading : leading + 1])]
        elif given is not None:
            parts.append(_start(given))
    parts += [_start(body[name]) for name in ("prompt", "content", "tokens") if body.get(name) is not None]
    return blake2b(_text(parts).encode(), digest_size=32).digest()


def _leading(messages: list[Any]) -> int:
    """How many messages of the system go before the others."""
    roles = (each.get("role") if isinstance(each, dict) else None for each in messages)
    return next((place for place, role in enumerate(roles) if role not in _SYSTEM), len(messages))


def _start(value: Any) -> str:
    return value[:BEGINNING] if isinstance(value, str) else _text(value)[:BEGINNING]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _lasting(system: Any) -> Any:
    """A system text without what a client changes in each request."""
    if isinstance(system, list):
        return [each for each in system if not (isinstance(each, dict) and is_private(each.get("text")))]
    return [line for line in system.split("\n") if not is_private(line)] if isinstance(system, str) else system
