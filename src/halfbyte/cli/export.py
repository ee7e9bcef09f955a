"""`halfbyte export`: write a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from halfbyte.cli import completion
from halfbyte.cli.output import note, print_pairs
from halfbyte.cli.progress import progress_bar
from halfbyte.units import size

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Model folder, GGUF file, Hugging Face id or short name.",
        autocompletion=completion.models,
    ),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="File (gguf) or folder to write.")]
Layout = Annotated[
    Literal["gguf", "awq", "gptq", "gptq_v2"],
    typer.Option("--to", metavar="gguf|awq|gptq|gptq_v2", help="File layout; awq is AutoAWQ's."),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Kind of GGUF file: f16, bf16, q8_0, q4_0, q4_1, q4_k, q5_k, q6_k, q4_k_m, q5_k_m; stored keeps the "
        "formats of the source.",
        show_default="stored if quantized, else q4_k_m",
        autocompletion=completion.kinds,
    ),
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text for an importance matrix, which weighs the rounding errors.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it is a file.")]

AllowRequantize = Annotated[
    bool, typer.Option("--allow-requantize", help="Round a quantized model a second time, into another format.")
]


def export(
    source: Source,
    target: Target,
    layout: Layout = "gguf",
    kind: Kind = None,
    calibration: Calibration = None,
    overwrite: Overwrite = False,
    allow_requantize: AllowRequantize = False,
) -> None:
    """Write a model as GGUF, or in the layout of AutoAWQ or GPTQ."""
    from halfbyte.tasks.export import export

    with progress_bar() as progress:
        made = export(
            source, target, layout=layout, kind=kind, calibration=calibration, overwrite=overwrite,
            allow_requantize=allow_requantize, progress=progress,
        )  # fmt: skip
    for text in made.notes:
        note(text)
    print_pairs([("written", str(target)), ("size", size(made.nbytes))])
