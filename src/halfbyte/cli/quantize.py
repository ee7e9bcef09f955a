"""`halfbyte quantize`: write a model with its matrices in 4 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from halfbyte.cli.output import print_pairs

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Model folder or Hugging Face id, in bf16, f16 or f32.")]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write.")]
GroupSize = Annotated[int, typer.Option(metavar="32|64|128", help="Weights that share a scale.")]
ZeroPoints = Annotated[bool, typer.Option("--zero-points/--symmetric", help="A zero point a group, or none.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if Halfbyte wrote it.")]


def quantize(
    source: Source,
    target: Target,
    group_size: GroupSize = 32,
    zero_points: ZeroPoints = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a model with its matrices in 4 bits."""
    from halfbyte.cli.folder import model_folder
    from halfbyte.quantize.rtn import quantize

    folder = model_folder(source)
    with _progress_bar() as progress:
        manifest = quantize(
            folder,
            target,
            group_size=group_size,
            zero_points=zero_points,
            name=source if folder != Path(source) else None,
            overwrite=overwrite,
            progress=progress,
        )
    print_pairs([("written", str(target)), ("weights", f"{manifest.bits_per_weight:.3f} bits a weight")])


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with (tensor, bytes done, bytes in all); draws on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("")

        def advance(tensor: str, done: int, total: int) -> None:
            bar.update(task, description=tensor, completed=done, total=total)

        yield advance
