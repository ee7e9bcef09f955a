"""Which model a command measures: a stored one, or random weights in the shapes of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import completion
from halfbyte.cli.loading import Chosen
from halfbyte.errors import UsageError

if TYPE_CHECKING:
    from halfbyte.report.subject import Subject

Synthetic = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Measure random weights in the shapes of this model.",
        autocompletion=completion.short_names,
        rich_help_panel="Model",
    ),
]
Layers = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="With --synthetic: use only N layers.", show_default="all", rich_help_panel="Model"
    ),
]


def subject_of(chosen: Chosen, synthetic: str | None, layers: int | None) -> Callable[[str | None], Subject]:
    """Makes the model to measure, with its matrices in a format.

    Raises:
        UsageError: The options contradict each other.
    """
    if synthetic is not None and (chosen.model, chosen.revision, chosen.offline) != (None, None, False):
        raise UsageError(
            "--synthetic cannot be combined with a stored model.", "Leave out --model, --revision and --offline."
        )
    if layers is not None and synthetic is None:
        raise UsageError("--layers only applies to --synthetic.", "Leave out --layers, or add --synthetic.")

    from halfbyte.report import subject as subjects

    def subject(weights: str | None) -> Subject:
        if synthetic is not None:
            return subjects.synthetic(synthetic, layers=layers, weights=weights)
        return subjects.stored(chosen.model, revision=chosen.revision, offline=chosen.offline, weights=weights)

    return subject
