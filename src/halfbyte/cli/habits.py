"""What fingers type that know Ollama, llama.cpp, mlx-lm, vLLM or transformers.

Three tables: options that mean the same here are taken under their other names, which no help shows; options and
commands that mean something else, or nothing, are answered with a sentence that names what to write here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.errors import UsageError

OTHER_NAMES: Mapping[str, str] = {
    "--model": "-hf -hfr --hf-repo --model-path --model-name-or-path",
    "--max-tokens": "--n-predict --predict --num-predict --max-new-tokens",
    "--temperature": "--temp",
    "--seed": "-s",
    "--context": "-c --ctx-size --n-ctx --num-ctx --max-model-len",
    "--threads": "--n-threads --num-threads --num-thread",
    "--gpu": "-mg --main-gpu",
    "--system": "-sys --system-prompt",
    "--repetition-penalty": "--repeat-penalty",
    "--typical-p": "--typical",
    "--top-n-sigma": "--top-nsigma",
    "--mirostat-tau": "--mirostat-ent",
    "--mirostat-eta": "--mirostat-lr",
    "--json-schema": "-jf --json-schema-file",
    "--prompt-cache": "--prompt-cache-file",
    "--file": "--prompt-file",
    "--stats": "--perf --show-timings",
    "--sequences": "-np --parallel --max-num-seqs",
    "--prompt-tokens": "--n-prompt",
    "--new-tokens": "--n-gen",
    "--depth": "--n-depth",
    "--repeat": "--repetitions",
    "--bits": "--q-bits --wbits",
    "--group-size": "--q-group-size",
    "--log-prompts": "--enable-log-requests",
}
"""Our options, and what other programs call the same."""


@dataclass(frozen=True)
class Habit:
    """An option of other programs that no command takes.

    Attributes:
        names: How it is written, separated by blanks.
        why: What is different here.
        instead: What to do here.
        needs: The option that `instead` names: only commands that have it are asked for it.
        commands: The commands that are asked for it; all if there are none.
        flag: Whether it has no value.
    """

    names: str
    why: str
    instead: str = "Leave it out."
    needs: str = ""
    commands: tuple[str, ...] = ()
    flag: bool = False

    def concerns(self, command: str | None, options: Collection[str]) -> bool:
        """Whether a command with these options is asked for it."""
        return (not self.needs or self.needs in options) and (not self.commands or command in self.commands)


HABITS = (
    Habit("-ngl --gpu-layers --n-gpu-layers --num-gpu", "a model runs on one device as a whole",
          "Choose the device: --device gpu, or --device cpu.", needs="--device"),
    Habit("-ts --tensor-split -sm --split-mode", "a model runs on one GPU as a whole", "Choose it: --gpu N.",
          needs="--gpu"),
    Habit("-tp --tensor-parallel-size -dp --data-parallel-size", "a model runs on one GPU as a whole",
          "To use several GPUs: --replicas N.", needs="--replicas"),
    Habit("--device-map", "a model runs on one device as a whole", "Choose it: --device gpu, or --device cpu.",
          needs="--device"),
    Habit("-fa --flash-attn", "attention always runs in the fastest way", flag=True),
    Habit("--attn-implementation", "attention always runs in the fastest way"),
    Habit("--mlock --no-mlock --mmap --no-mmap --no-warmup", "memory is managed without it", flag=True),
    Habit("-b --batch-size -ub --ubatch-size --max-num-batched-tokens", "it has another name here",
          "Set how many prompt tokens are computed together: --batch-tokens N.", needs="--batch-tokens"),
    Habit("-t -tb --threads-batch", "it has another name here", "Set the CPU threads: --threads N.",
          needs="--threads"),
    Habit("-ctk -ctv --cache-type-k --cache-type-v --kv-bits --kv-cache-dtype", "keys and values share one format",
          "Choose it: --kv-cache q8, or --kv-cache q4.", needs="--kv-cache"),
    Habit("--max-kv-size", "the KV cache holds one context", "Set its length: --context N.", needs="--context"),
    Habit("--gpu-memory-utilization", "the KV cache is sized in tokens", "Set its size: --cache-tokens N.",
          needs="--cache-tokens"),
    Habit("--dtype --torch-dtype", "weights stay as they are stored", "To convert them: --weights f16.",
          needs="--weights"),
    Habit("--quantization --quant", "weights stay as they are stored", "To pack them to 4 bits: --weights q4g32.",
          needs="--weights"),
    Habit("--load-in-4bit --load-in-8bit", "weights stay as they are stored",
          "To pack them: --weights q4g32, or --weights q8g32.", needs="--weights", flag=True),
    Habit("--trust-remote-code", "no code that comes with a model is ever run", flag=True),
    Habit("--tokenizer --tokenizer-path", "a model brings its own tokenizer"),
    Habit("--chat-template --chat-template-file", "a model brings its own chat template",
          "Leave it out, or write the whole prompt yourself and add --raw.", needs="--raw"),
    Habit("--jinja --use-default-chat-template", "the model's chat template is used anyway", flag=True),
    Habit("--ignore-chat-template --no-jinja", "it has another name here", "To skip the chat template: --raw.",
          needs="--raw", flag=True),
    Habit("--lora --lora-scaled --adapter-path", "adapters cannot be loaded", "Merge it into the model first."),
    Habit("-md --model-draft --draft-model -hfd", "there are no draft models"),
    Habit("--rope-scaling --rope-freq-base --rope-freq-scale", "RoPE follows the model's config.json"),
    Habit("--grammar --grammar-file -j --format", "answers are held to a JSON schema",
          "Put the schema into a file: --json-schema FILE.", needs="--json-schema"),
    Habit("-r --reverse-prompt --extra-eos-token", "an answer ends before a text of yours",
          "Give that text: --stop TEXT.", needs="--stop"),
    Habit("--do-sample", "the temperature decides", "To sample: --temperature 0.7. The default, 0, is greedy.",
          needs="--temperature", flag=True),
    Habit("--num-beams", "there is no beam search"),
    Habit("-i --interactive -cnv --conversation -if --interactive-first", "`run` answers once",
          "To talk: halfbyte chat MODEL.", commands=("run",), flag=True),
    Habit("-i --interactive -cnv --conversation -if --interactive-first", "`chat` is a conversation anyway",
          commands=("chat",), flag=True),
    Habit("-no-cnv --no-conversation -st --single-turn", "`run` answers once anyway", commands=("run",), flag=True),
    Habit("-no-cnv --no-conversation -st --single-turn", "`chat` is a conversation",
          'For one answer: halfbyte run MODEL "PROMPT".', commands=("chat",), flag=True),
    Habit("-p --prompt -f --file", "a conversation is typed", 'For one answer: halfbyte run MODEL "PROMPT".',
          commands=("chat",)),
    Habit("--verbose-prompt", "tokens of a prompt are seen from Python",
          'Write there: halfbyte.load("MODEL").encode("PROMPT").', commands=("run", "chat"), flag=True),
    Habit("-e --escape", "a prompt is taken as it is", "For line breaks: printf 'one\\ntwo' | halfbyte run MODEL.",
          commands=("run",), flag=True),
    Habit("--color -co --no-display-prompt --simple-io --log-disable --nowordwrap --no-perf",
          "only the answer goes to standard output", flag=True),
    Habit("--keepalive --keep-alive", "a model is freed when the command ends",
          "To keep one loaded: halfbyte serve MODEL.", commands=("run", "chat")),
    Habit("-m --model -hf --hf-repo", "models are arguments", "Write: halfbyte serve MODEL.", commands=("serve",)),
    Habit("-a --alias --served-model-name", "a name is given with the model", "Write: halfbyte serve NAME=MODEL.",
          commands=("serve",)),
    Habit("-cb --cont-batching --metrics --embedding --embeddings --slots --webui", "the server always does that",
          commands=("serve",), flag=True),
    Habit("--list-devices", "`doctor` lists devices", "Write: halfbyte doctor.", flag=True),
    Habit("--hf-path --mlx-path", "the model and the new folder are arguments",
          "Write: halfbyte quantize SOURCE TARGET.", commands=("quantize",)),
    Habit("-q --quantize", "`quantize` needs no such option", commands=("quantize",), flag=True),
    Habit("--imatrix", "importance is measured on a text", "Name it: --calibration FILE.", needs="--calibration"),
    Habit("--leave-output-tensor", "it has another name here", "To leave the output matrix: --head-bits 16.",
          needs="--head-bits", flag=True),
    Habit("--outtype --outfile", "GGUF files are written by `export`",
          "Write: halfbyte export SOURCE TARGET.gguf --kind q4_k_m.", commands=("quantize", "export")),
)  # fmt: skip
"""Options of other programs that mean something else here, or nothing."""

_RUN = 'halfbyte run MODEL "PROMPT"'
_CHAT = "halfbyte chat MODEL"
_SERVE = "halfbyte serve MODEL"
_QUANTIZE = "halfbyte quantize SOURCE TARGET, or halfbyte export SOURCE TARGET.gguf --kind q4_k_m"
_PERPLEXITY = "halfbyte eval perplexity MODEL --text FILE"

COMMANDS: Mapping[str, str] = {
    "generate ask prompt complete llama-cli llama-run llama llama.cpp main mlx_lm.generate mlx_lm": _RUN,
    "transformers mlx_lm.chat talk": _CHAT,
    "server api openai llama-server mlx_lm.server vllm": _SERVE,
    "convert llama-quantize mlx_lm.convert gguf convert_hf_to_gguf.py": _QUANTIZE,
    "benchmark llama-bench mlx_lm.benchmark speed": "halfbyte bench MODEL",
    "llama-batched-bench": "halfbyte bench throughput MODEL",
    "perplexity llama-perplexity mlx_lm.perplexity mlx_lm.evaluate evaluate": _PERPLEXITY,
    "llama-gguf-split llama-imatrix": "halfbyte export SOURCE TARGET.gguf --calibration FILE",
    "download fetch get": "halfbyte pull MODEL",
    "ls": "halfbyte list",
    "delete uninstall": "halfbyte rm MODEL",
    "inspect": "halfbyte show MODEL",
    "info env devices system": "halfbyte doctor",
    "version": "halfbyte --version",
    "signin login": "hf auth login",
    "signout logout": "hf auth logout",
    "push upload": "hf upload ORG/NAME FOLDER",
    "update upgrade": "pip install --upgrade halfbyte",
}
"""Commands of other programs, separated by blanks, and what does the same here."""

NO_COMMANDS: Mapping[str, tuple[str, str]] = {
    "ps": ("no model stays loaded after a command.", f"To keep one loaded: {_SERVE}."),
    "stop": (
        "no model stays loaded after a command.",
        "Ctrl-C ends any command; halfbyte serve --idle-timeout S drops a model that nobody uses.",
    ),
    "create": (
        "there are no Modelfiles.",
        'Give its system message and settings with the prompt: halfbyte run MODEL --system "TEXT" --temperature 0.7.',
    ),
    "cp": ("models are folders and files.", "`halfbyte show MODEL` says where one is; copy it from there."),
    "embed": ("vectors are made from Python and by the server.", f"Use model.embed(texts), or {_SERVE}."),
    "train": ("models are not trained here.", "Train with another program, then: halfbyte quantize SOURCE TARGET."),
}
"""Commands of other programs that have no like here: what is different, and what to do."""


def refuse_command(name: str) -> None:
    """Refuse a command of another program.

    Raises:
        UsageError: It is one; the hint names ours.
    """
    if name in NO_COMMANDS:
        raise UsageError(*NO_COMMANDS[name])
    for names, ours in COMMANDS.items():
        if name in names.split():
            raise UsageError(f"there is no command {name!r}.", f"Write: {ours}")


def other_names(param: Any) -> list[str]:
    """What other programs call an option."""
    return [other for name in param.opts for other in _spellings(OTHER_NAMES.get(name, ""))]


def _spellings(names: str) -> list[str]:
    """Names of options; long ones also with underscores, as transformers and vLLM take them."""
    found = names.split()
    return [*found, *(f"--{name[2:].replace('-', '_')}" for name in found if name.startswith("--") and "-" in name[2:])]


def add_habits(parser: Any, ctx: Any, params: Sequence[Any]) -> None:
    """Have a parser take options under their other names, and find those that `refuse_habits` refuses."""
    own = {name for param in params for name in (*param.opts, *param.secondary_opts)}
    for param in params:
        alias = copy.copy(param)
        alias.opts, alias.secondary_opts = [name for name in other_names(param) if name not in own], []
        if alias.opts:
            alias.add_to_parser(parser, ctx)
            own.update(alias.opts)
    for name, (answer, flag) in _answers(ctx, own).items():
        parser.add_option(obj=answer, opts=[name], dest=name, action="store_const" if flag else "store")


def _answers(ctx: Any, own: Collection[str]) -> dict[str, tuple[UsageError, bool]]:
    """Options of other programs that a command refuses, each with the error, and whether it has no value."""
    answers: dict[str, tuple[UsageError, bool]] = {}
    for habit in HABITS:
        concerned = habit.concerns(ctx.info_name, own)
        for name in _spellings(habit.names):
            if name not in own and concerned:
                answers[name] = UsageError(f"there is no option {name}: {habit.why}.", habit.instead), habit.flag
            elif name not in own and re.match(r"-\w\w", name):  # lest -ngl is read as -n with the value gl
                unknown = UsageError(f"there is no option {name}.", f"See '{ctx.command_path} --help'.")
                answers.setdefault(name, (unknown, habit.flag))
    return answers


def refuse_habits(order: Iterable[Any]) -> None:
    """Refuse an option of another program.

    Args:
        order: What a parser met, as it returns that.

    Raises:
        UsageError: One was given; the hint says what to write here.
    """
    for met in order:
        if isinstance(met, UsageError):
            raise met
