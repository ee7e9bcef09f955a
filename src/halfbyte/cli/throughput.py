"""`halfbyte bench throughput`: many requests at once, as a server gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.atomic import append, refuse_unwritable
from halfbyte.cli.loading import FILES, NAMED, RUN, Chosen, late_bar, takes_model
from halfbyte.cli.output import note
from halfbyte.cli.subject import Layers, Synthetic, subject_of
from halfbyte.errors import UsageError

if TYPE_CHECKING:
    from halfbyte.report.throughput_schema import ThroughputRecord

_REQUESTS = "Requests"
_OUTPUT = "Output"

RequestCount = Annotated[
    int, typer.Option("--requests", metavar="N", min=1, help="Requests to answer.", rich_help_panel=_REQUESTS)
]
PromptLengths = Annotated[
    str,
    typer.Option(
        "--prompt-tokens",
        "-p",
        metavar="N[-N]",
        help="Prompt length in tokens, or a range to draw lengths from.",
        rich_help_panel=_REQUESTS,
    ),
]
AnswerLengths = Annotated[
    str,
    typer.Option(
        "--new-tokens",
        "-n",
        metavar="N[-N]",
        help="Tokens to generate per request, or a range.",
        rich_help_panel=_REQUESTS,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Requests per second on average, at random times.",
        show_default="all at once",
        rich_help_panel=_REQUESTS,
    ),
]
SharedPrefix = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Tokens that all prompts begin with, before their own.", rich_help_panel=_REQUESTS
    ),
]
RandomSeed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, help="The same seed gives the same requests.", rich_help_panel=_REQUESTS
    ),
]
Sequences = Annotated[
    int, typer.Option(metavar="N", min=1, help="Requests computed at once, at most.", rich_help_panel="Model")
]
WarmUpRequests = Annotated[
    int | None,
    typer.Option(
        "--warm-up",
        metavar="N",
        min=0,
        help="Requests before those that count.",
        show_default="as many as --sequences",
        rich_help_panel=_REQUESTS,
    ),
]
JsonRecord = Annotated[
    bool, typer.Option("--json", help="Print the measurement as a line of JSON.", rich_help_panel=_OUTPUT)
]
OutputRecord = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Append the measurement, as a line of JSON.", rich_help_panel=_OUTPUT
    ),
]


@takes_model(NAMED, *FILES, *(name for name in RUN if name != "context"))
def throughput(
    *,
    chosen: Chosen,
    synthetic: Synthetic = None,
    layers: Layers = None,
    sequences: Sequences = 8,
    requests: RequestCount = 64,
    prompt_tokens: PromptLengths = "64-512",
    new_tokens: AnswerLengths = "64",
    rate: Rate = None,
    shared_prefix: SharedPrefix = 0,
    seed: RandomSeed = 0,
    warm_up: WarmUpRequests = None,
    json: JsonRecord = False,
    output: OutputRecord = None,
) -> None:
    """Measure many requests together: speed and waiting.

    The model is checked against the reference first.
    """
    subject = subject_of(chosen, synthetic, layers)

    from halfbyte.placement import choose_device
    from halfbyte.report import throughput as measuring
    from halfbyte.report.subject import Settings
    from halfbyte.report.throughput_tables import terminal
    from halfbyte.report.workload import Workload

    workload = Workload(requests, span(prompt_tokens), span(new_tokens), rate, shared_prefix, seed)
    run = replace(chosen.run, sequences=sequences, context=workload.context)
    run = replace(run, device=choose_device(run)[0])
    settings = Settings(run, repeat=1, warm_up=sequences if warm_up is None else warm_up)

    def finished(record: ThroughputRecord) -> None:
        print(record.to_json() + "\n" if json else terminal(record), end="", flush=True)
        if output is not None:
            append(output, record.to_json() + "\n")

    if output is not None:
        refuse_unwritable(output, overwrite=True)
    measuring.throughput(subject(run.weights), settings, workload, note, finished, late_bar)


def span(text: str) -> tuple[int, int]:
    """The fewest and the most of `64-512`; of a single number, twice that.

    Raises:
        UsageError: It is something else.
    """
    fewest, dash, most = text.partition("-")
    try:
        return int(fewest), int(most if dash else fewest)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not a range of numbers.", "Give a whole number, or the least and the most: 64-512."
        ) from error
