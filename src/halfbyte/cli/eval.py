"""`halfbyte eval`: what quantizing cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.command import Command, Group
from halfbyte.cli.loading import Chosen, takes_model
from halfbyte.cli.output import note, print_json, print_pairs
from halfbyte.cli.progress import progress_bar

if TYPE_CHECKING:
    from halfbyte.evaluate.table import Table
    from halfbyte.evaluate.windows import Protocol

ProtocolName = Literal["windows", "gptq", "llama.cpp", "sliding"]

Text = Annotated[str, typer.Option(metavar="FILE", help="UTF-8 text, or wikitext-2.")]
Base = Annotated[str | None, typer.Option(metavar="MODEL", help="What the model was made from.")]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="First tokens of the text.", show_default="all")
]
Window = Annotated[
    int | None, typer.Option(metavar="N", min=2, help="Tokens seen together.", show_default="2048, or 512")
]
Stride = Annotated[int | None, typer.Option(metavar="N", min=1, help="For sliding.", show_default="a quarter")]
ProtocolOption = Annotated[
    ProtocolName, typer.Option("--protocol", metavar="windows|gptq|llama.cpp|sliding", help="How the text is cut.")
]
Questions = Annotated[Path, typer.Option(metavar="FILE", help='JSON lines, each {"question": …, "answer": …}.')]
Asked = Annotated[
    Path | None, typer.Option("--questions", metavar="FILE", help="Count right answers too; JSON lines as for answers.")
]
Store = Annotated[bool, typer.Option("--store/--no-store", help="Keep the result in the model's halfbyte.json.")]
Windows = Annotated[str, typer.Option(metavar="N,N,…", help="Window lengths.")]
Methods = Annotated[str, typer.Option(metavar="NAME,…", help="bf16, rtn, awq, awq+, gptq, and folders made before.")]
Keep = Annotated[Path, typer.Option(metavar="FOLDER", help="Where quantized models are kept and found again.")]
Calibration = Annotated[Path, typer.Option(metavar="FILE", help="Text to calibrate on.")]
GroupSize = Annotated[int, typer.Option(metavar="32|64|128", help="Of the decoder layers.")]
Out = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Write it as .md, .csv, .json or .svg; may be repeated.")
]

_HOW = ("device", "gpu", "weights", "activations")

app = typer.Typer(cls=Group, rich_markup_mode=None, help="Measure perplexity, divergence and right answers.")


@app.command(cls=Command)
@takes_model("model", *_HOW)
def perplexity(
    text: Text,
    *,
    chosen: Chosen,
    protocol: ProtocolOption = "windows",
    window: Window = None,
    stride: Stride = None,
    max_tokens: MaxTokens = None,
    store: Store = True,
    json: opt.Json = False,
) -> None:
    """Perplexity of a text, with its standard error."""
    from halfbyte.evaluate.perplexity import perplexity
    from halfbyte.evaluate.scorer import Scorer, how_it_ran
    from halfbyte.evaluate.texts import read_text, tokens_of

    folder, run = _folder(chosen.model), chosen.run
    cut = _protocol(folder, protocol, window, stride)
    scorer = Scorer(folder, cut.window, run)
    ids = tokens_of(scorer.model.tokenizer, read_text(text, joined="\n\n" if protocol == "gptq" else "\n"), max_tokens)
    with progress_bar() as tick:
        found = perplexity(scorer, ids, cut, tick)
    figures = asdict(found) | {"text": Path(text).name} | how_it_ran(scorer.model)
    _finish(folder, "perplexity", figures, store and run.weights is None and run.activations is None, json)


@app.command(cls=Command)
@takes_model("model", *_HOW)
def divergence(
    text: Text,
    base: Annotated[str, typer.Option(metavar="MODEL", help="What the model was made from.")],
    *,
    chosen: Chosen,
    window: Window = None,
    max_tokens: MaxTokens = None,
    store: Store = True,
    json: opt.Json = False,
) -> None:
    """How far a model is from its original.

    KL divergence, agreement on the likeliest token, and the perplexity ratio.
    """
    from halfbyte.evaluate.divergence import divergence
    from halfbyte.evaluate.scorer import Scorer, how_it_ran
    from halfbyte.evaluate.texts import read_text, tokens_of

    folder, run = _folder(chosen.model), chosen.run
    cut = _protocol(folder, "windows", window, None)
    scorer = Scorer(folder, cut.window, run)
    original = Scorer(_folder(base), cut.window, device=run.device, gpu=run.gpu)
    ids = tokens_of(original.model.tokenizer, read_text(text), max_tokens)
    with progress_bar() as tick:
        found = divergence(scorer, original, ids, cut, tick)
    figures = asdict(found) | {"text": Path(text).name, "window": cut.window} | how_it_ran(scorer.model)
    _finish(folder, "divergence", figures, store and run.weights is None and run.activations is None, json)


@app.command(cls=Command)
@takes_model("model", *_HOW)
def answers(
    questions: Questions,
    *,
    chosen: Chosen,
    base: Base = None,
    store: Store = True,
    json: opt.Json = False,
) -> None:
    """Questions that are answered word for word."""
    from halfbyte.evaluate.answers import AT_ONCE, compare, read_questions, right_answers
    from halfbyte.evaluate.scorer import how_it_ran
    from halfbyte.model import load

    asked = read_questions(questions)
    folder, run = _folder(chosen.model), chosen.run
    with progress_bar() as tick:
        original = load(_folder(base), device=run.device, gpu=run.gpu, sequences=AT_ONCE) if base else None
        theirs = right_answers(original, asked, tick) if original else None
        asking = load(folder, run, sequences=AT_ONCE)
        right = right_answers(asking, asked, tick)
    found = {name: value for name, value in asdict(compare(right, theirs)).items() if value is not None}
    figures = found | {"questions": questions.name} | how_it_ran(asking)
    _finish(folder, "answers", figures, store and run.weights is None and run.activations is None, json)


@app.command(cls=Command)
@takes_model("model", "device", "gpu")
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
) -> None:
    """Quantize by several methods and compare what that costs.

    Perplexities at several window lengths, divergence, and right answers.
    """
    from halfbyte.evaluate.answers import read_questions
    from halfbyte.evaluate.sweep import Sweep

    if unknown := [file for file in out or [] if file.suffix not in _FORMS]:
        raise typer.BadParameter(f"{unknown[0]} must end in {', '.join(_FORMS)}.")
    asked = read_questions(questions) if questions else []
    with progress_bar() as tick:
        made = Sweep(
            _folder(chosen.model), methods.split(","), _lengths(windows), text, calibration, group_size, keep,
            max_tokens, chosen.run, asked,
        ).run(tick)  # fmt: skip
    for file in out or []:
        file.write_text(_FORMS[file.suffix](made), encoding="utf-8")
    print(made.markdown(), end="")


_FORMS: dict[str, Callable[[Table], str]] = {
    ".md": lambda table: table.markdown(),
    ".csv": lambda table: table.csv(),
    ".json": lambda table: table.json(),
    ".svg": lambda table: table.svg(),
}


def _lengths(windows: str) -> list[int]:
    try:
        lengths = [int(part) for part in windows.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{windows!r} is not a list of numbers.") from error
    return sorted(set(lengths))


def _folder(model: str | None) -> Path:
    from halfbyte.cli.folder import model_folder

    return model_folder(model)


def _protocol(folder: Path, name: ProtocolName, window: int | None, stride: int | None) -> Protocol:
    """The protocol, its windows no longer than the model's context where none were asked for."""
    from halfbyte.cli.folder import open_model
    from halfbyte.evaluate.windows import protocol

    spec = open_model(str(folder))[1]
    cut = protocol(name, window, stride, spec.bos_token_id)
    return cut if window or cut.window <= spec.context else protocol(name, spec.context, stride, spec.bos_token_id)


def _finish(folder: Path, name: str, figures: dict[str, Any], store: bool, json: bool) -> None:
    """Keep figures beside the weights, and print them."""
    from halfbyte.evaluate.record import record

    if store and not record(folder, name, figures):
        note(f"{folder} is not a folder of Halfbyte's own: the result is not stored there.")
    if json:
        print_json(figures)
    else:
        print_pairs(
            [(key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in figures.items()]
        )
