"""Real tokenizers and chat templates, which `scripts/tokenizers` installs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from halfbyte.errors import TemplateError
from halfbyte.text import Tokenizer
from halfbyte.text.template import ChatTemplate
from tests.conftest import ROOT

CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TOKENIZERS = (
    "deepseek_v3", "gemma2", "gemma3", "gpt4o", "gptoss", "llama2", "llama3", "llama3_1", "llama3_2", "mistral_nemo",
    "qwen2_5", "qwen3",
)  # fmt: skip


@cache
def installed() -> Path:
    """The folder that has a folder for each tokenizer, and one of templates."""
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "tokenizers")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=1200)
    return Path(done.stdout.splitlines()[-1])


@cache
def ours(name: str) -> Tokenizer:
    return Tokenizer.from_folder(installed() / name)


@cache
def theirs(name: str) -> Any:
    """The same tokenizer in transformers.

    Its classes for GPT-2 and Llama 2 cut texts in their own way, whatever tokenizer.json says; for these files, o200k's
    and SentencePiece's, that is not how the models were trained. So there the class for any file is taken.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if name in ("gpt4o", "llama2") else AutoTokenizer
    return kind.from_pretrained(installed() / name)


@cache
def template(name: str) -> str:
    """A chat template: one of trl's by its name, or one of Ollama's models, which have a colon in theirs."""
    templates = installed() / "templates"
    if ":" in name:
        return str(json.loads((templates / "ollama.json").read_text(encoding="utf-8"))[name])
    return (templates / f"{name}.jinja").read_text(encoding="utf-8")


TRL = (
    "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4",
    "gemma4_v5", "glm4moe", "gptoss", "lfm2", "lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "llama3", "llama3_1", "llama3_2",
    "nemotron_3_nano", "nemotron_3_5_lightning", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_instruct_2507",
    "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8",
)  # fmt: skip
OLLAMA = (
    "command-r7b:7b", "deepseek-v3.1:latest", "devstral:latest", "gemma2:2b", "granite3-dense:2b", "granite3.1-moe:1b",
    "granite3.2:8b", "granite3.3:2b", "granite4:350m", "granite4:latest", "hermes3:70b", "mistral-large:123b",
    "mistral-small:24b", "olmo2:7b", "phi4-mini:3.8b", "phi4-reasoning:14b", "phi4:14b", "qwen2:0.5b",
    "qwen3-coder:30b", "qwq:32b", "smollm2:135m",
)  # fmt: skip
OWN = ("ministral-3", "olmo-3", "olmo-3-think", "smollm-3")
"""Templates of the shapes that no package has."""
FAMILIES = (*TRL, *OLLAMA, *OWN)


def source(name: str) -> str:
    """The template of a family: a real one, or one of its shape."""
    return (CHAT_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") if name in OWN else template(name)


@cache
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL)


def outcome(source: str, messages: Any, **options: Any) -> str:
    """What Halfbyte makes of a conversation: its text, or why there is none."""
    try:
        return compiled(source).render(messages, **options)
    except TemplateError as error:
        return "refused: " + error.message.split(": ", 1)[-1]


def expected(messages: Any, source: str, **options: Any) -> str:
    """What transformers makes of it."""
    options.update(options.pop("variables", None) or {})
    try:
        return str(_renderer().apply_chat_template(messages, chat_template=source, tokenize=False, **options))
    except (jinja2.exceptions.TemplateError, TypeError, AttributeError, ValueError) as error:
        return "refused: " + " ".join(str(error).split())[:500]


@cache
def _renderer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(installed() / "llama2" / "tokenizer.json"), **SPECIAL)
