"""`halfbyte plan`: every step of a model's computation with its shapes, bytes and operations."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, NAMED, Chosen, takes_model
from halfbyte.cli.output import print_json

Tokens = Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Largest batch, in tokens.")]
Fused = Annotated[bool, typer.Option("--fused/--unfused", help="Merge steps that one kernel can do, or not.")]


@takes_model(NAMED, *FILES, "kv_dtype", "context", "cache_tokens")
def plan(
    *,
    chosen: Chosen,
    tokens: Tokens = 256,
    fused: Fused = True,
    json: opt.Json = False,
) -> None:
    """Show the steps of a model's computation with their costs."""
    from halfbyte.checkpoint.runnable import ExecutableWeights
    from halfbyte.cli.folder import open_model
    from halfbyte.plan import make_plan
    from halfbyte.plan.show import listing, summary, table, to_json

    run = chosen.run
    checkpoint, spec = open_model(chosen.model, revision=chosen.revision, offline=chosen.offline)
    checkpoint.check(spec)
    made = make_plan(
        spec, ExecutableWeights(checkpoint).format, tokens=tokens, context=run.context, kv_dtype=run.kv_dtype,
        cache_tokens=run.cache_tokens, fused=fused,
    )  # fmt: skip
    if json:
        print_json(to_json(made))
        return

    from rich.console import Console
    from rich.measure import Measurement

    on_terminal = sys.stdout.isatty()
    console = Console(width=None if on_terminal else 1000, highlight=False, markup=False, soft_wrap=not on_terminal)
    shown = table(made)
    if Measurement.get(console, console.options.update(max_width=10_000), shown).maximum <= console.width:
        console.print(shown)
    else:
        print(listing(made, console.width))
    console.print(summary(made))
