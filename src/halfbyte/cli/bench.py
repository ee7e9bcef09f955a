"""`halfbyte bench`: how fast a model is on this machine; `bench compare`: whether two measurements differ.

`bench throughput` is in a module of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from halfbyte.atomic import append, refuse_unwritable
from halfbyte.cli.command import Command, Group
from halfbyte.cli.loading import FILES, RUN, Chosen, late_bar, takes_model
from halfbyte.cli.output import note, print_json, terminal_width
from halfbyte.cli.subject import Layers, Synthetic, subject_of
from halfbyte.cli.throughput import throughput
from halfbyte.cli.usage import named_twice, refuse_before
from halfbyte.cli.words import names_model
from halfbyte.errors import DeviceError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from halfbyte.report.schema import Record
    from halfbyte.report.subject import Settings

_CASES = "Cases"
_OUTPUT = "Output"

Form = Literal["table", "markdown", "csv", "json"]

Prompts = Annotated[
    str,
    typer.Option("--prompt-tokens", "-p", metavar="N,N,…", help="Prompt lengths, in tokens.", rich_help_panel=_CASES),
]
NewTokens = Annotated[
    str, typer.Option("--new-tokens", "-n", metavar="N,N,…", help="Tokens to generate.", rich_help_panel=_CASES)
]
Depths = Annotated[
    str,
    typer.Option(
        "--depth", "-d", metavar="N,N,…", help="Tokens in the cache before the prompt.", rich_help_panel=_CASES
    ),
]
Batches = Annotated[
    str, typer.Option("--batch", "-b", metavar="N,N,…", help="Sequences at once.", rich_help_panel=_CASES)
]
Repeat = Annotated[
    int, typer.Option("--repeat", "-r", metavar="N", min=1, help="Repetitions of each case.", rich_help_panel=_CASES)
]
WarmUp = Annotated[
    int,
    typer.Option("--warm-up", metavar="N", min=0, help="Repetitions before those that count.", rich_help_panel=_CASES),
]
EachToken = Annotated[
    bool,
    typer.Option(
        "--each-token", help="On a GPU, read each token back before starting the next.", rich_help_panel=_CASES
    ),
]
Variants = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,…",
        help="Compare every combination of formats, activations, kernels.",
        rich_help_panel=_CASES,
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.", rich_help_panel=_OUTPUT)]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print a line of JSON per case.", rich_help_panel=_OUTPUT)]
JsonLines = Annotated[bool, typer.Option("--json", help="Print a line of JSON per comparison.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Append a line of JSON per case.", rich_help_panel=_OUTPUT),
]
Before = Annotated[Path, typer.Argument(metavar="A", help="A file written by bench --output.")]
After = Annotated[Path, typer.Argument(metavar="B", help="Another one.")]

Other = Annotated[
    Path, typer.Argument(metavar="OTHER", help="Folder of another checkout, or the Python of its environment.")
]
Runs = Annotated[int, typer.Option("--runs", metavar="N", min=5, help="Runs of each build.")]
Keep = Annotated[
    Path | None, typer.Option("--keep", metavar="FOLDER", help="Keep the measurements there, as a.jsonl and b.jsonl.")
]


class _Bench(Group):
    """Measures without a command too, and takes the name of a model in the place of one."""

    works_alone = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        values, words, _ = self.make_parser(ctx).parse_args(list(args))
        if not words or words[0] in self.commands or not names_model(words[0]):
            return super().parse_args(ctx, args)
        if "model" in values:
            raise named_twice(values["model"], words[0])
        return self.parse_args(ctx, [*args[: len(args) - len(words)], "--model", *words])


app = typer.Typer(
    cls=_Bench,
    rich_markup_mode=None,
    help="Measure speed, or compare two measurements.",
    subcommand_metavar="[MODEL | COMMAND [ARGS]...]",
)
app.command(cls=Command)(throughput)


@app.callback(invoke_without_command=True)
@takes_model(*FILES, *(name for name in RUN if name not in ("context", "cache_tokens")))
def bench(
    ctx: typer.Context,
    *,
    chosen: Chosen,
    synthetic: Synthetic = None,
    layers: Layers = None,
    prompt_tokens: Prompts = "128",
    new_tokens: NewTokens = "32",
    depth: Depths = "0",
    batch: Batches = "1",
    repeat: Repeat = 5,
    warm_up: WarmUp = 1,
    each_token: EachToken = False,
    variants: Variants = None,
    markdown: Markdown = False,
    csv: Csv = False,
    json: Json = False,
    output: Output = None,
) -> None:
    """Measure how fast a model reads prompts and generates tokens, after a correctness check."""
    if ctx.invoked_subcommand is not None:
        refuse_before(ctx, ctx.invoked_subcommand)
        return
    form = _form(markdown, csv, json)
    subject = subject_of(chosen, synthetic, layers)

    from halfbyte.placement import choose_device
    from halfbyte.report.bench import bench as measure
    from halfbyte.report.schema import cases
    from halfbyte.report.subject import Settings

    wanted = cases(*(numbers(text) for text in (prompt_tokens, new_tokens, depth, batch)))
    run = replace(chosen.run, device=choose_device(chosen.run)[0])
    settings = Settings(run, repeat, warm_up, each_token)
    from halfbyte.report.variants import variants as all_variants

    varied = [settings] if variants is None else all_variants([v.strip() for v in variants.split(",")], settings)

    if output is not None:
        refuse_unwritable(output, overwrite=True)
    done: list[Record] = []
    try:
        for each in varied:
            if each.variant:
                note(f"variant {each.variant}")
            with _passed_over(each):
                for record in measure(subject(each.run.weights), each, wanted, note, late_bar):
                    done.append(record)
                    _keep(record, output, form)
    finally:
        _show(done, form)
    if not done:
        raise UsageError("no variant could be measured.", "The lines above say why.")


@contextmanager
def _passed_over(settings: Settings) -> Iterator[None]:
    """If one of several variants fails, say so and go on with the others."""
    try:
        yield
    except (DeviceError, UnsupportedModelError) as error:
        if not settings.variant:
            raise
        note(f"variant {settings.variant} is left out: {error.message}")


@app.command(cls=Command, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def against(ctx: typer.Context, other: Other, runs: Runs = 10, keep: Keep = None) -> None:
    """Measure another build (A) and this one (B) in turns.

    Compares both at the end. All further options are passed on to bench.
    """
    from tempfile import TemporaryDirectory

    from halfbyte.report import against as turns

    builds = turns.find_build(other), turns.this_build()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        a, b = folder / "a.jsonl", folder / "b.jsonl"
        for file in (a, b):
            if file.exists():
                raise UsageError(f"{str(file)!r} exists.", "Choose another folder: older runs cannot be paired.")
        for done in turns.in_turns(*builds, ctx.args, (a, b), runs):
            note(f"{done} of {runs} pairs of runs")
        _print_comparison(a, b, json=False)


@app.command(cls=Command)
def compare(a: Before, b: After, json: JsonLines = False) -> None:
    """Say whether B is faster than A, slower, or not different."""
    _print_comparison(a, b, json=json)


def _print_comparison(a: Path, b: Path, *, json: bool) -> None:
    from dataclasses import asdict

    from halfbyte.report.compare import compare as compared
    from halfbyte.report.schema import read

    found = compared(read(a), read(b))
    for line in found:
        if json:
            print_json({**asdict(line), "verdict": line.verdict})
        else:
            print(line)
    if not json and not all(line.runs for line in found):
        note("Both files have a single run: a drift of the machine between them would look like a difference.")
        note("To rule that out, use `halfbyte bench against`, or append five runs of each in turns to the two files.")


def numbers(text: str) -> list[int]:
    """Whole numbers separated by commas, each once.

    Raises:
        UsageError: It is something else.
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers.", "Separate whole numbers by commas: 16,128.") from error


def _form(markdown: bool, csv: bool, json: bool) -> Form:
    forms: dict[Form, bool] = {"markdown": markdown, "csv": csv, "json": json}
    chosen = [form for form, wanted in forms.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(
            f"--{chosen[0]} and --{chosen[1]} cannot be combined.", "Choose one; --output writes JSON lines."
        )
    return chosen[0] if chosen else "table"


def _keep(record: Record, output: Path | None, form: Form) -> None:
    """Write a finished case at once, so that an interruption does not lose it."""
    if form == "json":
        print(record.to_json(), flush=True)
    if output is not None:
        append(output, record.to_json() + "\n")


def _show(done: list[Record], form: Form) -> None:
    """Print the finished cases, also after Ctrl-C; JSON is printed case by case."""
    from halfbyte.report import tables

    if not done or form == "json":
        return
    if form == "table":
        print(tables.terminal(done, terminal_width()), end="")
    else:
        print(tables.markdown(done) if form == "markdown" else tables.csv_text(done), end="")
