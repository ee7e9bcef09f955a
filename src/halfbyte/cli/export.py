"""`halfbyte export`: write a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from halfbyte.cli.output import note, print_pairs
from halfbyte.cli.progress import progress_bar
from halfbyte.units import size

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Model folder, GGUF file or Hugging Face id.")]
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
    from halfbyte.cli.folder import model_folder
    from halfbyte.quantize.export import export

    folder = model_folder(source)
    with progress_bar() as progress:
        notes = export(
            folder,
            target,
            layout=layout,
            kind=kind,
            calibration=calibration,
            name=source if folder != Path(source) else None,
            overwrite=overwrite,
            allow_requantize=allow_requantize,
            progress=progress,
        )
    for text in notes:
        note(text)
    files = [target] if target.is_file() else [file for file in target.iterdir() if file.is_file()]
    print_pairs([("written", str(target)), ("size", size(sum(file.stat().st_size for file in files)))])
