"""The options that commands share, each with its name, range, help line and heading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from halfbyte.cli import completion

_MODEL = "Model"
_TEXT = "Text"
_SAMPLING = "Sampling"
_OUTPUT = "Output"

Device = Literal["auto", "cpu", "gpu", "reference"]
KvCache = Literal["f16", "f32", "q8", "q4"]
Activations = Literal["int8", "f32"]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        show_default="the pocket model",
        help="Folder, GGUF file, Hugging Face id, or short name such as phi-4-mini.",
        autocompletion=completion.models,
        rich_help_panel=_MODEL,
    ),
]
NamedModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="The model, as for --model.", show_default=False, autocompletion=completion.models
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL] PROMPT", help="The model, if it is not the default one, and the prompt.", show_default=False
    ),
]
PromptOption = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", hidden=True)]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="Put the text of FILE after the prompt.", rich_help_panel=_TEXT),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit.", show_default="main", rich_help_panel=_MODEL),
]
Offline = Annotated[bool, typer.Option("--offline", help="Do not download anything.", rich_help_panel=_MODEL)]
DeviceOption = Annotated[
    Device, typer.Option("--device", metavar="auto|cpu|gpu|reference", help="Where to run.", rich_help_panel=_MODEL)
]
Gpu = Annotated[
    int | None,
    typer.Option(
        "--gpu",
        metavar="N",
        min=0,
        help="Number of the GPU, as `halfbyte doctor` counts.",
        show_default="the first hardware GPU",
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Convert the weights while loading, e.g. to q4g32, q4g128z, f16.",
        autocompletion=completion.formats,
        show_default="as stored",
        rich_help_panel=_MODEL,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="NAME=PATH",
        help="Load a LoRA adapter beside the weights; may be repeated.",
        show_default=False,
        rich_help_panel=_MODEL,
    ),
]
Merge = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Merge a LoRA adapter into the weights while loading.", rich_help_panel=_MODEL),
]
KvCacheOption = Annotated[
    KvCache,
    typer.Option("--kv-cache", metavar="f16|f32|q8|q4", help="Number format of the KV cache.", rich_help_panel=_MODEL),
]
ActivationsOption = Annotated[
    Activations | None,
    typer.Option(
        "--activations",
        metavar="int8|f32",
        help="Precision of the activations: int8 is faster, f32 exact.",
        show_default="int8",
        rich_help_panel=_MODEL,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Context length, in tokens.", show_default="the model's", rich_help_panel=_MODEL
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="CPU threads.", show_default="one per core", rich_help_panel=_MODEL),
]

BatchTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="How many prompt tokens are computed together.",
        show_default="the device's",
        rich_help_panel=_MODEL,
    ),
]
CacheTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Size of the KV cache, in tokens.",
        show_default="the context's",
        rich_help_panel=_MODEL,
    ),
]

System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message.", rich_help_panel=_TEXT)]
Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.", rich_help_panel=_TEXT)
]
TemplateVariables = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help='What the chat template reads besides messages, such as {"enable_thinking": false}.',
        rich_help_panel=_TEXT,
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", "-n", metavar="N", min=1, help="Maximum number of tokens in an answer.", rich_help_panel=_TEXT
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Stop before this text; may be repeated.", rich_help_panel=_TEXT),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Do not stop at end tokens; for measuring.", rich_help_panel=_TEXT)
]

JsonSchema = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Answer with JSON that is valid by the schema in FILE.", rich_help_panel=_TEXT),
]

Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "-t",
        metavar="X",
        help="How random the choice is; 0 always takes the most likely token.",
        rich_help_panel=_SAMPLING,
    ),
]
DynatempRange = Annotated[
    float,
    typer.Option(metavar="X", help="Let the temperature vary by up to X with the entropy.", rich_help_panel=_SAMPLING),
]
DynatempExponent = Annotated[
    float,
    typer.Option(metavar="X", help="Power with which the temperature follows the entropy.", rich_help_panel=_SAMPLING),
]
TopNSigma = Annotated[
    float,
    typer.Option(
        metavar="X", help="Drop tokens more than X standard deviations below the best logit.", rich_help_panel=_SAMPLING
    ),
]
TopK = Annotated[
    int, typer.Option(metavar="N", help="Sample from the N most likely tokens; 0 for all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="X", help="Sample from the most likely tokens up to this total probability.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        metavar="X", help="Drop tokens less than X times as likely as the most likely.", rich_help_panel=_SAMPLING
    ),
]
TypicalP = Annotated[
    float,
    typer.Option(
        metavar="X", help="Sample from the most typical tokens up to this total probability.", rich_help_panel=_SAMPLING
    ),
]
XtcProbability = Annotated[
    float,
    typer.Option(metavar="X", help="Exclude the top choices with this probability.", rich_help_panel=_SAMPLING),
]
XtcThreshold = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Probability from which a token is a top choice; the least likely of them stays.",
        rich_help_panel=_SAMPLING,
    ),
]
Mirostat = Annotated[
    int,
    typer.Option(
        metavar="0|2",
        help="2 turns mirostat on, which keeps the surprise near --mirostat-tau.",
        rich_help_panel=_SAMPLING,
    ),
]
MirostatTau = Annotated[
    float,
    typer.Option(metavar="X", help="Surprise to aim at, in bits per token.", rich_help_panel=_SAMPLING),
]
MirostatEta = Annotated[
    float,
    typer.Option(metavar="X", help="How fast mirostat adapts.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="X", help="Above 1, make tokens seen before less likely.", rich_help_panel=_SAMPLING)
]
PresencePenalty = Annotated[
    float,
    typer.Option(
        metavar="X", help="Subtract X from the logit of every token already generated.", rich_help_panel=_SAMPLING
    ),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option(
        metavar="X", help="Subtract X from a token's logit for each time it was generated.", rich_help_panel=_SAMPLING
    ),
]
RepeatLastN = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="How many of the last tokens the three penalties look at.",
        show_default="all",
        rich_help_panel=_SAMPLING,
    ),
]
DryMultiplier = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="Make tokens that continue a repetition less likely (DRY); 0 is off.",
        rich_help_panel=_SAMPLING,
    ),
]
DryBase = Annotated[
    float,
    typer.Option(
        metavar="X", help="How fast the DRY penalty grows with the length of the repetition.", rich_help_panel=_SAMPLING
    ),
]
DryAllowedLength = Annotated[
    int,
    typer.Option(metavar="N", help="Length of the shortest repetition that DRY penalizes.", rich_help_panel=_SAMPLING),
]
DryPenaltyLastN = Annotated[
    int,
    typer.Option(
        metavar="N", help="How many of the last tokens DRY searches.", show_default="all", rich_help_panel=_SAMPLING
    ),
]
DrySequenceBreaker = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Text at which a repetition ends, \\n for a line break; may be repeated; none for no such text.",
        show_default='\\n : " *',
        rich_help_panel=_SAMPLING,
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID=X", help="Add X to the logit of token ID; may be repeated.", rich_help_panel=_SAMPLING),
]
Samplers = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="The order of the samplers, separated by commas; those left out do nothing.",
        show_default="penalties, logit_bias, dry, temperature, top_n_sigma, top_k, typical_p, top_p, min_p, xtc",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Seed of the random choices: the same seed gives the same text.",
        show_default="random",
        rich_help_panel=_SAMPLING,
    ),
]

Logprobs = Annotated[
    int,
    typer.Option(
        metavar="N", help="With --json, also return the N most likely tokens at each position.", rich_help_panel=_OUTPUT
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Answer lines of JSON, each {"prompt": …} with settings of its own; - is standard input.',
        rich_help_panel=_TEXT,
    ),
]
Sequences = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="With --prompts: compute N answers at once.", show_default="8", rich_help_panel=_OUTPUT
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="With --prompts: write JSON lines to FILE; given again, go on where it stopped.",
        rich_help_panel=_OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="With --output: begin anew if FILE exists.", rich_help_panel=_OUTPUT)
]
PromptCache = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read the computed prompt from FILE, or write it there.", rich_help_panel=_MODEL),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print a line of JSON per prompt.", rich_help_panel=_OUTPUT)]
Stats = Annotated[bool, typer.Option("--stats", help="Show times and speed.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say which model is loaded and where it runs.", rich_help_panel=_OUTPUT)
]
