"""`halfbyte eval`: measure the quality of a model, and what quantizing cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.cli import completion
from halfbyte.cli import options as opt
from halfbyte.cli.command import Command, Group
from halfbyte.cli.loading import ADAPTERS, NAMED, Chosen, takes_model
from halfbyte.cli.output import note, print_json, print_pairs, terminal_width
from halfbyte.cli.progress import progress_bar
from halfbyte.errors import HalfbyteError, UsageError

if TYPE_CHECKING:
    from halfbyte.evaluation.table import Table
    from halfbyte.options import RunOptions
    from halfbyte.tasks.evaluate import Evaluation

ProtocolName = Literal["windows", "gptq", "llama.cpp", "sliding"]

Text = Annotated[str, typer.Option(metavar="FILE", help="UTF-8 text, or wikitext-2.")]
Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The model it was made from.", autocompletion=completion.models)
]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="Use only the first N tokens of the text.", show_default="all")
]
Window = Annotated[int | None, typer.Option(metavar="N", min=2, help="Tokens per window.", show_default="2048, or 512")]
Stride = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="With --protocol sliding: tokens between windows.", show_default="a quarter"),
]
ProtocolOption = Annotated[
    ProtocolName,
    typer.Option("--protocol", metavar="windows|gptq|llama.cpp|sliding", help="How the text is cut into windows."),
]
Questions = Annotated[Path, typer.Option(metavar="FILE", help='JSON lines, each {"question": …, "answer": …}.')]
Asked = Annotated[
    Path | None,
    typer.Option("--questions", metavar="FILE", help="Count right answers too; the file is that of 'eval answers'."),
]
Store = Annotated[
    bool | None,
    typer.Option(
        "--store/--no-store",
        help="Keep the result in the model's halfbyte.json, or not.",
        show_default="unless a better one is there",
    ),
]
Windows = Annotated[str, typer.Option(metavar="N,N,…", help="Window lengths.")]
Methods = Annotated[
    str, typer.Option(metavar="NAME,…", help="bf16, rtn, awq, awq+, gptq, or folders of quantized models.")
]
Keep = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Folder for the quantized models; existing ones are reused.")
]
Calibration = Annotated[Path, typer.Option(metavar="FILE", help="Text to calibrate on.")]
GroupSize = Annotated[int, typer.Option(metavar="32|64|128", help="Group size of the decoder layers.")]
Out = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Write it as .md, .csv, .json; plot it as .svg, .png, .pdf; may be repeated."),
]

Dark = Annotated[bool, typer.Option("--dark", help="Plot for a dark page.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files named with --out.")]

_HOW = ("device", "gpu", "weights", "kv_dtype", "activations")

app = typer.Typer(cls=Group, rich_markup_mode=None, help="Measure perplexity, divergence and right answers.")


@app.command(cls=Command)
@takes_model(NAMED, "model", *_HOW, *ADAPTERS)
def perplexity(
    text: Text,
    *,
    chosen: Chosen,
    protocol: ProtocolOption = "windows",
    window: Window = None,
    stride: Stride = None,
    max_tokens: MaxTokens = None,
    store: Store = None,
    json: opt.Json = False,
) -> None:
    """Measure the perplexity of a text, with its standard error.

    With --adapter or --merge it is that of the adapter.
    """
    from halfbyte.tasks.evaluate import evaluate

    run = chosen.run
    _check_store(store, run)
    with progress_bar() as tick:
        found = evaluate(
            chosen.model, text, protocol=protocol, window=window, stride=stride, max_tokens=max_tokens, options=run,
            progress=tick,
        )  # fmt: skip
    _finish(found, "perplexity", run, store, json)


@app.command(cls=Command)
@takes_model(NAMED, "model", *_HOW)
def divergence(
    text: Text,
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="The model it was made from.", autocompletion=completion.models)
    ],
    *,
    chosen: Chosen,
    window: Window = None,
    max_tokens: MaxTokens = None,
    store: Store = None,
    json: opt.Json = False,
) -> None:
    """Compare a quantized model with its original.

    Prints the KL divergence from the original (in nats per token: mean, 99th percentile, maximum), the share of tokens
    for which both have the same most likely token (top1), and both perplexities with their ratio.

    With --kv-cache, and the model itself as --base, that is what the KV cache's number format costs; the base keeps its
    cache in f16.
    """
    from halfbyte.tasks.evaluate import evaluate

    run = chosen.run
    _check_store(store, run)
    with progress_bar() as tick:
        found = evaluate(
            chosen.model, text, base=base, window=window, max_tokens=max_tokens, options=run, progress=tick
        )
    _finish(found, "divergence", run, store, json)


@app.command(cls=Command)
@takes_model(NAMED, "model", *_HOW)
def answers(
    questions: Questions,
    *,
    chosen: Chosen,
    base: Base = None,
    store: Store = None,
    json: opt.Json = False,
) -> None:
    """Count the questions answered right, word for word."""
    from halfbyte.tasks.evaluate import evaluate

    run = chosen.run
    _check_store(store, run)
    with progress_bar() as tick:
        found = evaluate(chosen.model, base=base, questions=questions, options=run, progress=tick)
    _finish(found, "answers", run, store, json)


@app.command(cls=Command)
@takes_model(NAMED, "model", "device", "gpu")
def table(
    text: Text,
    calibration: Calibration,
    *,
    chosen: Chosen,
    methods: Methods = "bf16,rtn,awq,awq+,gptq",
    windows: Windows = "16,96,192,256,512,768,1024,1536,2048",
    group_size: GroupSize = 128,
    max_tokens: MaxTokens = None,
    questions: Asked = None,
    keep: Keep = Path("quantized"),
    out: Out = None,
    dark: Dark = False,
    overwrite: Overwrite = False,
) -> None:
    """Quantize by several methods and compare their quality.

    The table has perplexities at several window lengths, the divergence from the original, and right answers. It is
    fitted to a terminal; elsewhere it is Markdown.
    """
    from halfbyte import atomic
    from halfbyte.evaluation.answers import read_questions
    from halfbyte.evaluation.plot import check_plotting
    from halfbyte.evaluation.sweep import Sweep

    if unknown := [file for file in out or [] if file.suffix not in (*_TEXTS, *_PLOTS)]:
        kinds = ", ".join((*_TEXTS, *_PLOTS))
        raise UsageError(f"--out {unknown[0]} does not name a kind of file.", f"End it in {kinds}.")
    if any(file.suffix in _PLOTS for file in out or []):
        check_plotting()
    elif dark:
        raise UsageError("--dark has no effect without a plot.", "Leave it out, or name a file, as in --out table.png.")
    if overwrite and not out:
        raise UsageError("--overwrite has no effect without --out.", "Leave it out, or name a file.")
    for file in out or []:
        atomic.refuse_unwritable(file, overwrite=overwrite)
    asked = read_questions(questions) if questions else []
    with progress_bar() as tick:
        made = Sweep(
            _folder(chosen.model), methods.split(","), _lengths(windows), text, calibration, group_size, keep,
            max_tokens, chosen.run, asked,
        ).run(tick)  # fmt: skip
    width = terminal_width()
    print(made.markdown() if width is None else made.terminal(width), end="", flush=True)
    for file in out or []:
        plotted = file.suffix in _PLOTS
        atomic.write(file, made.plot(file.suffix[1:], dark=dark) if plotted else _TEXTS[file.suffix](made))


_PLOTS = (".svg", ".png", ".pdf")
_TEXTS: dict[str, Callable[[Table], str]] = {
    ".md": lambda table: table.markdown(),
    ".csv": lambda table: table.csv(),
    ".json": lambda table: table.json(),
}


def _lengths(windows: str) -> list[int]:
    try:
        lengths = [int(part) for part in windows.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--windows {windows!r} is not a list of numbers.", "Write whole numbers with commas: 512,2048."
        ) from error
    return sorted(set(lengths))


def _folder(model: str | None) -> Path:
    from halfbyte.cli.folder import model_folder

    return model_folder(model)


def _check_store(store: bool | None, run: RunOptions) -> None:
    """Refuse --store for a measurement of something other than the folder's own model."""
    if store and (changed := _changed(run)):
        option = {"adapters": "--adapter"}.get(changed, f"--{changed}")
        raise UsageError(
            f"--store cannot be combined with {option}: that is not how the model runs by default.",
            f"Leave out --store or {option}.",
        )


def _may_store(store: bool | None, run: RunOptions) -> bool | None:
    return False if _changed(run) else store


def _changed(run: RunOptions) -> str | None:
    """An option with which a model runs in another way than by default."""
    return next((name for name in ("weights", "activations", *ADAPTERS) if getattr(run, name)), None)


def _finish(found: Evaluation, what: str, run: RunOptions, store: bool | None, json: bool) -> None:
    """Print figures, then keep them beside the weights where that may be.

    Args:
        what: What was measured; with the KV cache's number format it gives the name under which figures are kept.
        run: How the model ran.
        store: True to replace older figures, None unless those are better founded, False not to store.

    Raises:
        HalfbyteError: They were to be stored and could not be.
    """
    from halfbyte.evaluation import record

    if json:
        print_json(found.figures)
    else:
        print_pairs(found.labelled)
    if _may_store(store, run) is False:
        return
    try:
        _store(found.path, record.name_of(what, run.kv_dtype), found.figures, asked=bool(store))
    except (HalfbyteError, OSError) as error:
        reason = error.message if isinstance(error, HalfbyteError) else f"{found.path}: {error.strerror or error}."
        if store:
            raise HalfbyteError(f"the result was not stored: {reason}", "Leave out --store.") from error
        note(f"The result was not stored: {reason} (--no-store does not try.)")


def _store(folder: Path, name: str, figures: dict[str, Any], *, asked: bool) -> None:
    from halfbyte.evaluation import record

    why_not = record.why_not_stored(folder, name, figures)
    if not why_not or (asked and record.can_be_stored(folder)):
        record.store(folder, name, figures)
    elif asked:
        raise UsageError(f"{why_not}.", "Leave out --store.")
    else:
        more = " --store does it anyway." * record.can_be_stored(folder)
        note(f"The result was not stored: {why_not}.{more}")
