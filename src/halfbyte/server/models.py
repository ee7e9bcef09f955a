"""`GET /v1/models`: which models there are, and what is known of those that are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from halfbyte.model import Model
from halfbyte.server.json import JsonResponse
from halfbyte.server.registry import Entry, Registry
from halfbyte.server.serving import serving_of
from halfbyte.units import size


async def models(request: Request) -> Response:
    """All models, as OpenAI lists them; `models` is for clients that look there."""
    registry = serving_of(request).registry
    return JsonResponse(listed(_all(registry)))


async def model(request: Request) -> Response:
    """One model by its name."""
    registry = serving_of(request).registry
    name = registry.name(request.path_params["name"])
    return JsonResponse(next(each for each in _all(registry) if each["id"] == name))


def _all(registry: Registry) -> list[dict[str, Any]]:
    """Each model, followed by its adapters."""
    found = []
    for entry in registry.entries:
        base = described(entry, registry.created)
        found.append(base)
        found += [base | _named(name) | {"parent": base["id"]} for name in entry.source.adapters]
    return found


def _named(name: str) -> dict[str, str]:
    """A name, for all who look for it in other places."""
    return {"id": name, "name": name, "model": name, "slug": name}


def listed(data: list[dict[str, Any]]) -> dict[str, Any]:
    """Models as a list of the protocol."""
    return {"object": "list", "data": data, "models": data}


_ADDED = ("sequences", "cache_tokens", "weights_bytes", "requests")


def together(lists: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What replicas tell of their models as one list: `loaded` adds up what those have where a model is loaded.

    Args:
        lists: One from each replica, at least one; all have the same models in the same order.
    """
    found = []
    for same in zip(*lists, strict=True):
        loaded = [each for each in same if each["loaded"] is not None]
        whole = dict((loaded or same)[0])
        if loaded:
            added = {name: sum(each["loaded"][name] for each in loaded) for name in _ADDED}
            whole["loaded"] = {**whole["loaded"], **added, "replicas": len(loaded)}
        found.append(whole)
    return found


def loaded_lines(name: str, model: Model) -> list[str]:
    """What a user should know of a model that was loaded: its size, where it runs, how many answers at once."""
    return [
        f"{name}: {size(model.nbytes)}, loaded in {model.load_s:.2f} s",
        f"running on {model.device}: {model.why_device}",
        f"context of {model.plan.context:,} tokens; {model.plan.sequences} answers at once",
        *model.notes,
    ]


def described(entry: Entry, created: int) -> dict[str, Any]:
    """A model as JSON. `loaded` tells where it runs, null while it is not in memory; `halfbyte` what was measured."""
    name = entry.source.name
    found: dict[str, Any] = {
        **_named(name), "object": "model", "created": created, "owned_by": "halfbyte", "loaded": None,
        "halfbyte": dict(entry.source.quality),
    }  # fmt: skip
    if entry.loaded is not None:
        running = entry.loaded.model
        found["max_model_len"] = running.plan.context
        found["halfbyte"] |= {"device": running.device, "context": running.plan.context}
        found["loaded"] = {
            "device": running.device, "context": running.plan.context, "sequences": running.plan.sequences,
            "cache_tokens": running.plan.cache_tokens, "weights_bytes": running.nbytes, "requests": entry.loaded.users,
        }  # fmt: skip
    return found
