"""Lowered programs as JSON, both ways, and their hash.

The form is what a web page reads too: plain objects; bindings name entries of one list of `refs`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple
from typing import Any, TypeVar

from halfbyte.gpu.lowering.program import (
    Axis,
    Cache,
    Dispatch,
    KeySplits,
    Lowered,
    Matrix,
    Output,
    Piece,
    Program,
    Ref,
    Vector,
)
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.shaders.shader import Shader

SCHEMA = 1

T = TypeVar("T")


def to_json(lowered: Lowered) -> str:
    """The JSON of lowered programs; equal programs give equal text."""
    refs: dict[Ref, int] = {}
    values = {
        "schema": SCHEMA,
        "shaders": [{"kernel": shader.kernel, "code": shader.code} for shader in lowered.shaders],
        "programs": {name: _program(program, refs) for name, program in lowered.programs.items()},
        "refs": [],
        **{
            name: {key: asdict(value) for key, value in getattr(lowered, name).items()}
            for name in ("matrices", "vectors", "caches")
        },
        "state": asdict(lowered.state),
        "constants": dict(lowered.constants),
        "buffers": dict(lowered.buffers),
    }
    values["refs"] = [astuple(ref) for ref in refs]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def digest(lowered: Lowered) -> str:
    """A hash that changes with anything that is lowered."""
    return hashlib.sha256(to_json(lowered).encode()).hexdigest()


def _program(program: Program, refs: dict[Ref, int]) -> dict[str, Any]:
    output = program.output
    found: dict[str, Any] = {"dispatches": [_dispatch(each, refs) for each in program.dispatches]}
    if output:
        number = refs.setdefault(output.ref, len(refs))
        found["output"] = {"ref": number, "width": output.width, "stride": output.stride}
    return found | {"head": program.head}


def _dispatch(dispatch: Dispatch, refs: dict[Ref, int]) -> dict[str, Any]:
    found = {
        "shader": dispatch.shader,
        "bindings": {name: refs.setdefault(ref, len(refs)) for name, ref in dispatch.bindings.items()},
        "grid": [asdict(axis) for axis in dispatch.grid],
        "label": dispatch.label,
        "step": dispatch.step,
    }
    if dispatch.long:
        found |= {"long": _dispatch(dispatch.long, refs), "long_keys": dispatch.long_keys}
    return found


def from_json(text: str) -> Lowered:
    """Lowered programs from their JSON.

    Raises:
        ValueError: The text is not JSON of this schema.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"this is not schema {SCHEMA} of lowered programs")
    try:
        refs = [Ref(*each) for each in values["refs"]]
        return Lowered(
            tuple(Shader(**each) for each in values["shaders"]),
            {name: _read_program(each, refs) for name, each in values["programs"].items()},
            StateLayout(**values["state"]),
            _each(values["matrices"], _read_matrix),
            _each(
                values["vectors"],
                lambda each: Vector(tuple(each["tensors"]), each["offset"], each["size"], each["scale"]),
            ),
            _each(values["constants"], tuple),
            _each(values["caches"], lambda each: Cache(**each)),
            dict(values["buffers"]),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as problem:
        raise ValueError(f"lowered programs are not complete: {problem}") from problem


def _each(values: Mapping[str, Any], read: Callable[[Any], T]) -> dict[str, T]:
    return {name: read(value) for name, value in values.items()}


def _read_program(values: Mapping[str, Any], refs: list[Ref]) -> Program:
    dispatches = tuple(_read_dispatch(each, refs) for each in values["dispatches"])
    output = values.get("output")
    made = Output(refs[output["ref"]], output["width"], output["stride"]) if output else None
    return Program(dispatches, made, values["head"])


def _read_dispatch(values: Mapping[str, Any], refs: list[Ref]) -> Dispatch:
    x, y, z = (KeySplits(**axis) if "chunk" in axis else Axis(**axis) for axis in values["grid"])
    return Dispatch(
        values["shader"],
        {name: refs[number] for name, number in values["bindings"].items()},
        (x, y, z),
        values["label"],
        values["step"],
        _read_dispatch(values["long"], refs) if "long" in values else None,
        values.get("long_keys", 0),
    )


def _read_matrix(values: Mapping[str, Any]) -> Matrix:
    pieces = tuple(Piece(**piece) for piece in values["pieces"])
    return Matrix(tuple(values["tensors"]), tuple(values["heights"]), values["rows"], values["columns"], pieces)
