"""`halfbyte.json`: what Halfbyte's own model folder says about each tensor, checked when it is read.

    {"format": "halfbyte", "version": 1, "source": "…", "bits_per_weight": 4.5,
     "tensors": {"model.norm.weight": {"format": "bf16", "method": "copy", "shape": [512], "sha256": "…"}, …},
     "quality": {…}}

A tensor's SHA-256 is that of its parts' bytes, one after the other in the order of its format's layout.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.checks import damaged, is_shape, read_json, shown
from halfbyte.errors import UnsupportedModelError

MANIFEST_NAME = "halfbyte.json"
VERSION = 1


@dataclass(frozen=True)
class TensorRecord:
    """How one tensor is stored: format, how it was made, logical shape, SHA-256 of its bytes in hexadecimal."""

    format: str
    method: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The whole of `halfbyte.json`.

    Attributes:
        tensors: Each tensor's record, by logical name.
        bits_per_weight: Stored bits over weights, of the whole model.
        source: What it was made from.
        quality: Measured figures by name; empty when none were measured.
    """

    tensors: Mapping[str, TensorRecord]
    bits_per_weight: float
    source: str = ""
    quality: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of the file."""
        tensors = {name: asdict(record) for name, record in self.tensors.items()}
        document = {
            "format": "halfbyte",
            "version": VERSION,
            "source": self.source,
            "bits_per_weight": self.bits_per_weight,
            "tensors": tensors,
        }
        return json.dumps(document | ({"quality": dict(self.quality)} if self.quality else {}), indent=1) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest in this file.

    Raises:
        InvalidModelError: It is not what this version of Halfbyte writes.
        UnsupportedModelError: A later version wrote it.
    """
    document = read_json(path)
    version = document.get("version")
    if document.get("format") != "halfbyte" or type(version) is not int:
        damaged(path, "it does not say that it is Halfbyte's")
    if version != VERSION:
        raise UnsupportedModelError(f"{path} has version {version}; this Halfbyte reads {VERSION}.", "Update Halfbyte.")
    tensors, quality = document.get("tensors"), document.get("quality", {})
    bits, source = document.get("bits_per_weight"), document.get("source", "")
    if not isinstance(tensors, dict) or not isinstance(quality, dict) or not isinstance(source, str):
        damaged(path, "tensors and quality must be objects and source a string")
    if not isinstance(bits, int | float) or isinstance(bits, bool) or not 0 <= bits < math.inf:
        damaged(path, f"bits_per_weight is {shown(bits)}")
    records = {name: _record(path, name, value) for name, value in tensors.items()}
    return Manifest(records, float(bits), source, quality)


def _record(path: Path, name: str, value: Any) -> TensorRecord:
    if not isinstance(value, dict) or value.keys() != {"format", "method", "shape", "sha256"}:
        damaged(path, f"{shown(name)} does not have just format, method, shape and sha256")
    if not is_shape(value["shape"]):
        damaged(path, f"{shown(name)} has the impossible shape {shown(value['shape'])}")
    if not isinstance(value["format"], str) or not isinstance(value["method"], str):
        damaged(path, f"{shown(name)} needs names of a format and a method")
    if not isinstance(value["sha256"], str) or not re.fullmatch("[0-9a-f]{64}", value["sha256"]):
        damaged(path, f"{shown(name)} has the SHA-256 {shown(value['sha256'])}")
    return TensorRecord(value["format"], value["method"], tuple(value["shape"]), value["sha256"])
