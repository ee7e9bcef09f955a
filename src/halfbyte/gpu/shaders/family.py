"""Families of kernels whose sizes depend on a shape: a rule gives them; what was measured on a device replaces it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Constants = dict[str, Any]
Shape = Mapping[str, int | str]


@dataclass
class Tuning:
    """Sizes measured on a device, and what lowering asked for.

    Attributes:
        sizes: By row, those that replace the rule's.
        asked: Every row that was looked up, with its family and shape.
    """

    sizes: dict[str, Constants] = field(default_factory=dict)
    asked: dict[str, tuple[str, Shape]] = field(default_factory=dict)

    def merged(self, row: str, sizes: Constants) -> Tuning:
        """The same with other sizes in one row, and nothing asked yet."""
        return Tuning({**self.sizes, row: sizes})


@dataclass(frozen=True)
class Family:
    """One way to compute, in many sizes.

    Attributes:
        rule: Sizes for a shape, on devices that nothing was measured on.
        space: The values that each size may take.
        fits: Whether a device can run a shape with sizes, given what it offers and both together.
        derived: Further constants that follow from shape and sizes.
    """

    name: str
    rule: Callable[..., Constants]
    space: Mapping[str, tuple[int, ...]]
    fits: Callable[[Any, Mapping[str, Any]], bool] = lambda config, sizes: True
    derived: Callable[[Mapping[str, Any]], Constants] = lambda sizes: {}

    def __call__(self, config: Any, **shape: int | str) -> Constants:
        """Constants for a shape: the rule's, or those measured where they still fit."""
        row = row_name(self.name, shape)
        config.tuning.asked[row] = (self.name, shape)
        sizes = self.rule(config, **shape)
        measured = config.tuning.sizes.get(row)
        if measured and self.fits(config, {**shape, **sizes, **measured}):
            sizes |= measured
        return sizes | self.derived({**shape, **sizes})

    def candidates(self, config: Any, shape: Shape) -> list[Constants]:
        """All other sizes that fit, those most like the rule's first."""
        usual = self.rule(config, **shape)
        varied = {name: values for name, values in self.space.items() if name in usual}
        made = (dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values()))
        fitting = [sizes for sizes in made if self.fits(config, {**shape, **usual, **sizes})]
        return sorted(
            (sizes for sizes in fitting if _distance(sizes, usual)), key=lambda sizes: _distance(sizes, usual)
        )


def row_name(family: str, shape: Shape) -> str:
    """How a family's row for a shape is called, in files too: `gemv blocks=96 columns=1 …`."""
    return " ".join([family, *(f"{name}={shape[name]}" for name in sorted(shape))])


def _distance(sizes: Mapping[str, int], usual: Mapping[str, int]) -> float:
    """How many times sizes double or halve between the two."""
    return sum(abs(math.log2((1 + value) / (1 + usual[name]))) for name, value in sizes.items())
