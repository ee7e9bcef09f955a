"""Which sizes won where, in the user's cache: by adapter, driver and kernels, then by a row of op, shape and format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from halfbyte import user_cache
from halfbyte.formats import Format
from halfbyte.gpu.checks.selftest import device_key
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.models.spec import ModelSpec

SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """What became of one row.

    Attributes:
        model: The model it was measured for last, as `model_key` calls it.
        label: The kernels it chooses sizes for, in words.
        phase: The program it was timed in.
        usual: The rule's sizes; `sizes` those that won, empty where the rule's stay.
        usual_s: Seconds that a token (or a batch of the phase) spends in them by the rule; `best_s` with the winner.
        calls: How often that runs them.
        tried: Sizes that were timed; `wrong` those of the fastest that computed something else.
    """

    row: str
    model: str
    label: str
    phase: str
    usual: Mapping[str, int]
    sizes: Mapping[str, int]
    usual_s: float
    best_s: float
    calls: int
    tried: int
    wrong: int


@dataclass(frozen=True)
class Verdict:
    """A whole program of some of the model's layers before and after, in seconds, and whether its choices stay."""

    phase: str
    layers: int
    before_s: float
    after_s: float
    kept: bool


@dataclass
class Choices:
    """What is remembered about one device.

    Attributes:
        rows: By row.
        verdicts: By model, then by phase.
        short: Models that so far only the short version has seen.
    """

    rows: dict[str, Measured] = field(default_factory=dict)
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    short: set[str] = field(default_factory=set)

    def tuning(self) -> Tuning:
        """The sizes that won."""
        return Tuning({row: dict(measured.sizes) for row, measured in self.rows.items() if measured.sizes})


def choices_file() -> Path:
    """Where choices are kept."""
    return user_cache.folder() / "gpu-tuning.json"


def load_choices(device: Device, path: Path | None = None) -> Choices:
    """What is remembered about a device; entries that this version cannot read are left out."""
    return _parsed(user_cache.load(path or choices_file(), SCHEMA).get(device_key(device)))


def keep_choices(device: Device, choices: Choices, path: Path | None = None) -> None:
    """Remember choices in place of those before.

    Raises:
        HalfbyteError: The file cannot be written.
    """
    path = path or choices_file()
    values = {
        "rows": [asdict(measured) for measured in choices.rows.values()],
        "verdicts": {model: [asdict(verdict) for verdict in found] for model, found in choices.verdicts.items()},
        "short": sorted(choices.short),
    }
    user_cache.store(path, SCHEMA, {**user_cache.load(path, SCHEMA), device_key(device): values})


def remembered_tuning(device: Device) -> Tuning:
    """The sizes to use on a device."""
    return load_choices(device).tuning()


def model_key(spec: ModelSpec, formats: Callable[[str], Format], kv_dtype: str, activations: str) -> str:
    """The same for models whose kernels have the same shapes and formats."""
    weights = sorted({(shape, formats(name).name) for name, shape in spec.shapes.items() if len(shape) == 2})
    heads = sorted({(a.heads, a.kv_heads, a.head_dim, a.window or 0) for a in spec.attentions})
    about = (weights, heads, len(spec.layers), kv_dtype, activations)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _parsed(values: object) -> Choices:
    if not isinstance(values, dict):
        return Choices()
    try:
        rows = [Measured(**entry) for entry in values["rows"]]
        verdicts = {model: [Verdict(**v) for v in found] for model, found in values["verdicts"].items()}
        return Choices({m.row: m for m in rows if _known(m.row, m.sizes)}, verdicts, set(values["short"]))
    except (KeyError, TypeError, AttributeError):
        return Choices()


def _known(row: str, sizes: Mapping[str, Any]) -> bool:
    """Whether sizes are among those that their family may take."""
    family = rules.FAMILIES.get(row.partition(" ")[0])
    return family is not None and all(_among(value, family.space.get(name, ())) for name, value in sizes.items())


def _among(value: object, values: Collection[int]) -> bool:
    return isinstance(value, int) and value in values
