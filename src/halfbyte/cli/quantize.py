"""`halfbyte quantize`: write a smaller copy of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halfbyte.cli import completion
from halfbyte.cli.exit_codes import EXIT_INTERRUPTED
from halfbyte.cli.output import note, print_pairs
from halfbyte.cli.progress import progress_bar, timed
from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.tasks.quantize import Quantized

_METHOD = "Method"
_FORMAT = "Formats"
_CALIBRATION = "Calibration"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Model folder, GGUF file or Hugging Face id, in bf16, f16 or f32.",
        autocompletion=completion.models,
    ),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write.")]
Method = Annotated[
    Literal["rtn", "awq", "awq+", "gptq"],
    typer.Option(
        metavar="rtn|awq|awq+|gptq", help="Quantization method; rtn needs no calibration text.", rich_help_panel=_METHOD
    ),
]
Clip = Annotated[
    bool, typer.Option("--clip", help="rtn: choose ranges by least squared error.", rich_help_panel=_METHOD)
]
AwqScales = Annotated[
    bool, typer.Option("--awq-scales", help="gptq: apply AWQ's scales first.", rich_help_panel=_METHOD)
]
Refine = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="After gptq or awq, train scales and norms for N steps to match the original's output (try 32).",
        rich_help_panel=_METHOD,
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        metavar="3|4|8", help="Bits per weight of the decoder layers.", show_default="4", rich_help_panel=_FORMAT
    ),
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
        help="Store a zero point per group of 3 or 4 bits.",
        show_default="symmetric for rtn",
        rich_help_panel=_FORMAT,
    ),
]
EmbedBits = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Bits of the embedding table; 16 leaves it as it is.",
        show_default="as --bits; awq 16; awq+ 4",
        rich_help_panel=_FORMAT,
    ),
]
HeadBits = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Bits of the output matrix; 16 leaves it as it is.",
        show_default="as --bits; awq 16; awq+ 4",
        rich_help_panel=_FORMAT,
    ),
]
EmbedGroup = Annotated[
    int | None,
    typer.Option("--embed-group-size", metavar="N", help="Group size of the embedding table.", rich_help_panel=_FORMAT),
]
HeadGroup = Annotated[
    int | None,
    typer.Option("--head-group-size", metavar="N", help="Group size of the output matrix.", rich_help_panel=_FORMAT),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="BITS", help="Target average bits per weight; sensitive layers get more.", rich_help_panel=_FORMAT
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Text to calibrate on; all methods but rtn need it.", rich_help_panel=_CALIBRATION
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=512, help="How many of its tokens to use.", show_default="65536", rich_help_panel=_CALIBRATION
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Discard unfinished work of an earlier command.")]
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
    calibration_tokens: CalibrationTokens = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
) -> None:
    """Write a smaller copy of a model, in 3, 4 or 8 bits per weight.

    If interrupted, run the same command again to resume.
    """
    from halfbyte.tasks.quantize import quantize

    with _resumable(target), progress_bar() as progress:
        made = quantize(
            source, target, method=method, bits=bits, group_size=group_size, zero_points=zero_points,
            embed_bits=embed_bits, head_bits=head_bits, embed_group_size=embed_group_size,
            head_group_size=head_group_size, budget=budget, clip=clip, awq_scales=awq_scales, refine=refine,
            calibration=calibration, calibration_tokens=calibration_tokens, overwrite=overwrite, restart=restart,
            progress=timed(progress),
        )  # fmt: skip
    print_pairs(_summary(made))


@contextmanager
def _resumable(target: Path) -> Iterator[None]:
    """Say, when Ctrl-C or a signal ends the work, that it can be resumed."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        from halfbyte.quantization.work import is_resumable, work_path

        again = " The finished work is kept: run the same command again to resume." * is_resumable(work_path(target))
        note(f"Interrupted.{again}")
        code = stopped.code if isinstance(stopped, SystemExit) else EXIT_INTERRUPTED
        raise typer.Exit(int(code or EXIT_INTERRUPTED)) from stopped


def _summary(made: Quantized) -> list[tuple[str, str]]:
    return [
        ("written", f"{made.path} ({size(made.nbytes)}, in {made.seconds:.1f} s)"),
        ("weights", f"{made.bits_per_weight:.3f} bits per weight"),
        ("formats", ", ".join(f"{count} tensors in {name}" for name, count in made.formats.items())),
        ("try it", f'halfbyte run -m {made.path} "How do I extract a tar archive?"'),
    ]
