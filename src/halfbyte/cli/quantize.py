"""`halfbyte quantize`: write a model with its matrices in few bits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from halfbyte.cli.output import print_pairs

_METHOD = "Method"
_FORMAT = "Formats"
_CALIBRATION = "Calibration"

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Model folder, GGUF file or Hugging Face id, in bf16, f16 or f32.")
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write.")]
Method = Annotated[
    Literal["rtn", "awq", "awq+", "gptq"],
    typer.Option(metavar="rtn|awq|awq+|gptq", help="How to round.", rich_help_panel=_METHOD),
]
Clip = Annotated[bool, typer.Option("--clip", help="rtn: ranges of least squared error.", rich_help_panel=_METHOD)]
AwqScales = Annotated[bool, typer.Option("--awq-scales", help="gptq: after AWQ's scales.", rich_help_panel=_METHOD)]
Refine = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="gptq, awq: steps in which scales and norms learn the original's distribution, such as 32.",
        rich_help_panel=_METHOD,
    ),
]
Bits = Annotated[
    int | None, typer.Option(metavar="3|4|8", help="Bits of a weight.", show_default="4", rich_help_panel=_FORMAT)
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        metavar="32|64|128",
        help="Weights that share a scale.",
        show_default="32; 128 for awq+",
        rich_help_panel=_FORMAT,
    ),
]
ZeroPoints = Annotated[
    bool | None,
    typer.Option(
        "--zero-points/--symmetric",
        help="A zero point a group of 3 or 4 bits, or none.",
        show_default="none for rtn",
        rich_help_panel=_FORMAT,
    ),
]
EmbedBits = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of the embedding table.", show_default="as --bits; awq 16; awq+ 4", rich_help_panel=_FORMAT
    ),
]
HeadBits = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Of the output matrix.", show_default="as --bits; awq 16; awq+ 4", rich_help_panel=_FORMAT
    ),
]
EmbedGroup = Annotated[
    int | None, typer.Option("--embed-group-size", metavar="N", help="Of the embedding table.", rich_help_panel=_FORMAT)
]
HeadGroup = Annotated[
    int | None, typer.Option("--head-group-size", metavar="N", help="Of the output matrix.", rich_help_panel=_FORMAT)
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="BITS", help="Bits a weight of the whole file; formats follow sensitivity.", rich_help_panel=_FORMAT
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text to calibrate on; all but rtn need it.", rich_help_panel=_CALIBRATION),
]
CalibrationTokens = Annotated[
    int, typer.Option(metavar="N", min=512, help="Tokens of it to use.", rich_help_panel=_CALIBRATION)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if Halfbyte wrote it.")]


def quantize(
    source: Source,
    target: Target,
    method: Method = "rtn",
    clip: Clip = False,
    awq_scales: AwqScales = False,
    refine: Refine = 0,
    bits: Bits = None,
    group_size: GroupSize = None,
    zero_points: ZeroPoints = None,
    embed_bits: EmbedBits = None,
    head_bits: HeadBits = None,
    embed_group_size: EmbedGroup = None,
    head_group_size: HeadGroup = None,
    budget: Budget = None,
    calibration: Calibration = None,
    calibration_tokens: CalibrationTokens = 65_536,
    overwrite: Overwrite = False,
) -> None:
    """Write a model with its matrices in few bits.

    Interrupted, it goes on where it was when the same command is given again.
    """
    from halfbyte.cli.folder import model_folder
    from halfbyte.errors import UsageError
    from halfbyte.quantize import quantize
    from halfbyte.quantize.options import Options

    if budget is not None and any(value is not None for value in (bits, group_size, zero_points)):
        raise UsageError("A budget chooses the formats itself.", "Give --budget, or bits, group size and zero points.")
    options = Options(
        method=method,
        clip=clip,
        awq_scales=awq_scales,
        refine=refine,
        bits=4 if bits is None else bits,
        group_size=(128 if method == "awq+" else 32) if group_size is None else group_size,
        zero_points=method != "rtn" if zero_points is None else zero_points,
        embed_bits=embed_bits,
        head_bits=head_bits,
        embed_group_size=embed_group_size,
        head_group_size=head_group_size,
        budget=budget,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
    )
    folder = model_folder(source)
    name = source if folder != Path(source) else None
    with progress_bar() as progress:
        manifest = quantize(folder, target, name=name, overwrite=overwrite, progress=progress, **vars(options))
    print_pairs([("written", str(target)), ("weights", f"{manifest.bits_per_weight:.3f} bits a weight")])


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with (what, done, all); draws on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("")

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield advance
