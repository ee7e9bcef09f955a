"""The options that commands share, each with its name, range, help line and heading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_MODEL = "Model"
_TEXT = "Text"
_SAMPLING = "Sampling"
_OUTPUT = "Output"

Device = Literal["auto", "cpu", "gpu", "reference"]
KvCache = Literal["f16", "f32"]
Activations = Literal["int8", "f32"]


def installed_models(incomplete: str) -> list[str]:
    """Completions of `--model`: ids of downloaded models."""
    from halfbyte.checkpoint.hub import installed

    return [model.repo for model in installed() if model.repo.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        show_default="the pocket model",
        help="Folder, GGUF file or Hugging Face id.",
        autocompletion=installed_models,
        rich_help_panel=_MODEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="main", rich_help_panel=_MODEL),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is downloaded.", rich_help_panel=_MODEL)]
DeviceOption = Annotated[
    Device, typer.Option("--device", metavar="auto|cpu|gpu|reference", help="Where to run.", rich_help_panel=_MODEL)
]
Gpu = Annotated[
    int | None,
    typer.Option(
        "--gpu", metavar="N", min=0, help="Which GPU.", show_default="the first real one", rich_help_panel=_MODEL
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Pack at load, e.g. q4g32, q4g128z, f16.",
        show_default="as stored",
        rich_help_panel=_MODEL,
    ),
]
KvCacheOption = Annotated[
    KvCache, typer.Option("--kv-cache", metavar="f16|f32", help="Type of the KV cache.", rich_help_panel=_MODEL)
]
ActivationsOption = Annotated[
    Activations | None,
    typer.Option(
        "--activations",
        metavar="int8|f32",
        help="What packed weights are multiplied with.",
        show_default="int8",
        rich_help_panel=_MODEL,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Context, in tokens.", show_default="the model's", rich_help_panel=_MODEL),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads.", show_default="one a core", rich_help_panel=_MODEL),
]

BatchTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Prompt tokens computed together.", show_default="the device's", rich_help_panel=_MODEL
    ),
]
CacheTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="KV cache, in tokens.", show_default="the context's", rich_help_panel=_MODEL),
]

System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.", rich_help_panel=_TEXT)]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt: no chat template.", rich_help_panel=_TEXT)]
MaxTokens = Annotated[
    int,
    typer.Option("--max-tokens", "-n", metavar="N", min=1, help="Most tokens of an answer.", rich_help_panel=_TEXT),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End before this text; may be repeated.", rich_help_panel=_TEXT),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Go on after end tokens, for measuring.", rich_help_panel=_TEXT)
]

Temperature = Annotated[
    float,
    typer.Option("--temperature", "-t", metavar="X", help="0 takes the likeliest token.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[int, typer.Option(metavar="N", help="Only the N likeliest; 0 for all.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float,
    typer.Option(metavar="X", help="Only the likeliest up to this sum.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float,
    typer.Option(metavar="X", help="Only those X times as likely as the top.", rich_help_panel=_SAMPLING),
]
TypicalP = Annotated[
    float,
    typer.Option(metavar="X", help="Only the most typical up to this sum.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="X", help="Above 1 avoids tokens seen.", rich_help_panel=_SAMPLING)
]
PresencePenalty = Annotated[
    float, typer.Option(metavar="X", help="Off the logits of tokens seen.", rich_help_panel=_SAMPLING)
]
FrequencyPenalty = Annotated[
    float, typer.Option(metavar="X", help="The same, each time seen.", rich_help_panel=_SAMPLING)
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=X", help="Added to a token's logit; may be repeated.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="The same seed, the same text.", show_default="random", rich_help_panel=_SAMPLING),
]

Logprobs = Annotated[
    int,
    typer.Option(metavar="N", help="With --json: likeliest tokens a place.", rich_help_panel=_OUTPUT),
]
Prompts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='JSON lines, each {"prompt": …}, answered in turn.', rich_help_panel=_OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="A line of JSON a prompt.", rich_help_panel=_OUTPUT)]
Stats = Annotated[bool, typer.Option("--stats", help="Show times and speed.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is loaded and where it runs.", rich_help_panel=_OUTPUT)
]
