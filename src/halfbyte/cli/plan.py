"""`halfbyte plan`: every step of a model's computation with its shapes, bytes and operations."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.loading import FILES, Chosen, takes_model
from halfbyte.cli.output import print_json

Tokens = Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Most tokens of one batch.")]
Fused = Annotated[bool, typer.Option("--fused/--unfused", help="With or without fusions.")]


@takes_model(*FILES, "kv_dtype", "context", "cache_tokens")
def plan(
    *,
    chosen: Chosen,
    tokens: Tokens = 256,
    fused: Fused = True,
    json: opt.Json = False,
) -> None:
    """Show the steps a model is run by, with their costs."""
    from halfbyte.checkpoint.foreign import Runnable
    from halfbyte.cli.folder import open_model
    from halfbyte.plan import make_plan
    from halfbyte.plan.show import summary, table, to_json

    run = chosen.run
    checkpoint, spec = open_model(chosen.model, revision=chosen.revision, offline=chosen.offline)
    checkpoint.check(spec)
    made = make_plan(
        spec, Runnable(checkpoint).format, tokens=tokens, context=run.context, kv_dtype=run.kv_dtype,
        cache_tokens=run.cache_tokens, fused=fused,
    )  # fmt: skip
    if json:
        print_json(to_json(made))
        return

    from rich.console import Console

    on_terminal = sys.stdout.isatty()
    console = Console(width=None if on_terminal else 1000, highlight=False, markup=False, soft_wrap=not on_terminal)
    console.print(table(made))
    console.print(summary(made))
