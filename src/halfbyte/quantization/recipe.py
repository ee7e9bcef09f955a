"""Which tensor gets which format."""

from __future__ import annotations

from collections.abc import Mapping

from halfbyte.checkpoint.packed import Recipe
from halfbyte.errors import UsageError
from halfbyte.formats import get_format
from halfbyte.models.spec import ModelSpec

BITS = (3, 4, 8, 16)
GROUPS = (32, 64, 128)


def listed(formats: Mapping[str, str]) -> Recipe:
    """A format for each listed tensor; all others stay as they are stored."""
    for name in set(formats.values()):
        get_format(name)
    return lambda name, shape: formats.get(name)


def group_format(bits: int, group_size: int, zero_points: bool) -> str | None:
    """The name of the format with these groups; None for 16 bits, which leaves a tensor as it is.

    Raises:
        UsageError: There is no such format.
    """
    if bits not in BITS:
        raise UsageError(f"{bits} bits are not supported.", "Choose 3, 4 or 8, or 16 to leave weights as they are.")
    if group_size not in GROUPS:
        raise UsageError(f"Groups of {group_size} are not supported.", "Choose 32, 64 or 128.")
    if bits == 16:
        return None
    return f"q{bits}g{group_size}{'z' if zero_points and bits < 8 else ''}"


def for_model(spec: ModelSpec, body: str | None, embed: str | None, head: str | None) -> Recipe:
    """One format for a model's decoder layers, others for its embedding table and output matrix (None: as stored).

    Tied to the embedding table, the output matrix is one tensor with it and gets the table's format.

    Raises:
        UnsupportedModelError: No format has one of these names.
    """
    for wanted in (body, embed, head):
        if wanted is not None:
            get_format(wanted)
    names = {name: body for name, shape in spec.shapes.items() if len(shape) == 2}
    names[spec.lm_head] = head
    names[spec.embed] = embed
    return listed({name: form for name, form in names.items() if form is not None})
