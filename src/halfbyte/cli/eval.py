"""`halfbyte eval`: measure the quality of a model, and what quantizing cost."""

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
from halfbyte.errors import HalfbyteError, UsageError

if TYPE_CHECKING:
    from halfbyte.evaluate.table import Table
    from halfbyte.evaluate.windows import Protocol
    from halfbyte.options import RunOptions

ProtocolName = Literal["windows", "gptq", "llama.cpp", "sliding"]

Text = Annotated[str, typer.Option(metavar="FILE", help="UTF-8 text, or wikitext-2.")]
Base = Annotated[str | None, typer.Option(metavar="MODEL", help="The model it was made from.")]
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
    typer.Option(metavar="FILE", help="Write it as .md, .csv, .json or .svg; may be repeated."),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files named with --out.")]

_LABELS = {
    "ppl": "perplexity",
    "stderr": "standard error of the perplexity",
    "ppl_stderr": "standard error of the perplexity",
    "ppl_base": "perplexity of the base",
    "ppl_base_stderr": "standard error of the base's perplexity",
    "ppl_ratio": "perplexity over the base's",
    "kl_mean": "mean KL divergence, in nats per token",
    "kl_stderr": "standard error of that mean",
    "kl_p99": "99th percentile of the KL divergence",
    "kl_max": "largest KL divergence",
    "top1": "share of tokens with the same first choice",
    "tokens": "tokens scored",
    "bos": "windows begin with the BOS token",
    "right": "right answers",
    "total": "questions asked",
    "base_right": "right answers of the base",
    "kept": "right answers of both",
    "halfbyte": "Halfbyte version",
}
"""Names of figures in words; the others explain themselves."""

_HOW = ("device", "gpu", "weights", "kv_dtype", "activations")

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
    store: Store = None,
    json: opt.Json = False,
) -> None:
    """Measure the perplexity of a text, with its standard error."""
    from halfbyte.evaluate.perplexity import perplexity
    from halfbyte.evaluate.record import about_text
    from halfbyte.evaluate.scorer import Scorer, how_it_ran
    from halfbyte.evaluate.texts import read_text, tokens_of

    if stride is not None and protocol != "sliding":
        raise UsageError(f"--stride has no effect with --protocol {protocol}.", "Choose --protocol sliding as well.")
    run = chosen.run
    _check_store(store, run)
    folder = _folder(chosen.model)
    content = read_text(text, joined="\n\n" if protocol == "gptq" else "\n")
    cut = _protocol(folder, protocol, window, stride)
    scorer = Scorer(folder, cut.window, run)
    ids = tokens_of(scorer.model.tokenizer, content, max_tokens)
    with progress_bar() as tick:
        found = perplexity(scorer, ids, cut, tick)
    conditions = about_text(content, Path(text).name) | how_it_ran(scorer.model)
    stepped = {"stride": cut.stride} if protocol == "sliding" else {}
    _finish(folder, "perplexity", asdict(found) | conditions | stepped, run, store, json)


@app.command(cls=Command)
@takes_model("model", *_HOW)
def divergence(
    text: Text,
    base: Annotated[str, typer.Option(metavar="MODEL", help="The model it was made from.")],
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
    from halfbyte.evaluate.divergence import divergence
    from halfbyte.evaluate.record import about_base, about_text
    from halfbyte.evaluate.scorer import Scorer, how_it_ran
    from halfbyte.evaluate.texts import read_text, tokens_of

    run = chosen.run
    _check_store(store, run)
    folder, base_folder = _folder(chosen.model), _folder(base)
    content = read_text(text)
    cut = _protocol(folder, "windows", window, None)
    scorer = Scorer(folder, cut.window, run)
    original = Scorer(base_folder, cut.window, device=run.device, gpu=run.gpu)
    ids = tokens_of(original.model.tokenizer, content, max_tokens)
    with progress_bar() as tick:
        found = divergence(scorer, original, ids, cut, tick)
    figures = asdict(found) | about_text(content, Path(text).name) | {"protocol": cut.name, "window": cut.window}
    figures |= about_base(base_folder) | how_it_ran(scorer.model)
    _finish(folder, "divergence", figures, run, store, json)


@app.command(cls=Command)
@takes_model("model", *_HOW)
def answers(
    questions: Questions,
    *,
    chosen: Chosen,
    base: Base = None,
    store: Store = None,
    json: opt.Json = False,
) -> None:
    """Count the questions answered right, word for word."""
    from halfbyte.evaluate.answers import AT_ONCE, compare, read_questions, right_answers
    from halfbyte.evaluate.record import about_base, about_text
    from halfbyte.evaluate.scorer import how_it_ran
    from halfbyte.model import load

    folder, run = _folder(chosen.model), chosen.run
    _check_store(store, run)
    asked = read_questions(questions)
    with progress_bar() as tick:
        original = load(_folder(base), device=run.device, gpu=run.gpu, sequences=AT_ONCE) if base else None
        theirs = right_answers(original, asked, tick) if original else None
        asking = load(folder, run, sequences=AT_ONCE)
        right = right_answers(asking, asked, tick)
    found = {name: value for name, value in asdict(compare(right, theirs)).items() if value is not None}
    figures = found | about_text(questions.read_text("utf-8"), questions.name, kind="questions")
    figures |= (about_base(_folder(base)) if base else {}) | how_it_ran(asking)
    _finish(folder, "answers", figures, run, store, json)


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
    overwrite: Overwrite = False,
) -> None:
    """Quantize by several methods and compare their quality.

    The table has perplexities at several window lengths, the divergence from the original, and right answers.
    """
    from halfbyte import atomic
    from halfbyte.evaluate.answers import read_questions
    from halfbyte.evaluate.sweep import Sweep

    if unknown := [file for file in out or [] if file.suffix not in _FORMS]:
        raise UsageError(f"--out {unknown[0]} does not name a kind of file.", f"End it in {', '.join(_FORMS)}.")
    for file in out or []:
        atomic.refuse_unwritable(file, overwrite=overwrite)
    asked = read_questions(questions) if questions else []
    with progress_bar() as tick:
        made = Sweep(
            _folder(chosen.model), methods.split(","), _lengths(windows), text, calibration, group_size, keep,
            max_tokens, chosen.run, asked,
        ).run(tick)  # fmt: skip
    print(made.markdown(), end="", flush=True)
    for file in out or []:
        atomic.write(file, _FORMS[file.suffix](made))


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
        raise UsageError(
            f"--windows {windows!r} is not a list of numbers.", "Write whole numbers with commas: 512,2048."
        ) from error
    return sorted(set(lengths))


def _folder(model: str | None) -> Path:
    from halfbyte.cli.folder import model_folder

    return model_folder(model)


def _protocol(folder: Path, name: ProtocolName, window: int | None, stride: int | None) -> Protocol:
    """The protocol; its default window is at most the model's context."""
    from halfbyte.cli.folder import open_model
    from halfbyte.evaluate.windows import protocol

    spec = open_model(str(folder))[1]
    cut = protocol(name, window, stride, spec.bos_token_id)
    return cut if window or cut.window <= spec.context else protocol(name, spec.context, stride, spec.bos_token_id)


def _check_store(store: bool | None, run: RunOptions) -> None:
    """Refuse --store for a measurement of something other than the folder's own model."""
    if store and (run.weights or run.activations):
        option = "--weights" if run.weights else "--activations"
        raise UsageError(
            f"--store cannot be combined with {option}: that is not how the model runs by default.",
            f"Leave out --store or {option}.",
        )


def _may_store(store: bool | None, run: RunOptions) -> bool | None:
    return False if run.weights or run.activations else store


def _finish(folder: Path, what: str, figures: dict[str, Any], run: RunOptions, store: bool | None, json: bool) -> None:
    """Print figures, then keep them beside the weights where that may be.

    Args:
        what: What was measured; with the KV cache's number format it gives the name under which figures are kept.
        run: How the model ran.
        store: True to replace older figures, None unless those are better founded, False not to store.

    Raises:
        HalfbyteError: They were to be stored and could not be.
    """
    from halfbyte.evaluate import record

    if json:
        print_json(figures)
    else:
        shown = {key: value for key, value in figures.items() if not key.endswith("_sha256")}
        print_pairs([(_LABELS.get(key, key.replace("_", " ")), _shown(value)) for key, value in shown.items()])
    if _may_store(store, run) is False:
        return
    try:
        _store(folder, record.name_of(what, run.kv_dtype), figures, asked=bool(store))
    except (HalfbyteError, OSError) as error:
        reason = error.message if isinstance(error, HalfbyteError) else f"{folder}: {error.strerror or error}."
        if store:
            raise HalfbyteError(f"the result was not stored: {reason}", "Leave out --store.") from error
        note(f"The result was not stored: {reason} (--no-store does not try.)")


def _store(folder: Path, name: str, figures: dict[str, Any], *, asked: bool) -> None:
    from halfbyte.evaluate import record

    why_not = record.why_not_stored(folder, name, figures)
    if not why_not or (asked and record.can_be_stored(folder)):
        record.store(folder, name, figures)
    elif asked:
        raise UsageError(f"{why_not}.", "Leave out --store.")
    else:
        more = " --store does it anyway." * record.can_be_stored(folder)
        note(f"The result was not stored: {why_not}.{more}")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
