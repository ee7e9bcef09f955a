"""`halfbyte.evaluate`: measure the quality of a model, and what quantizing cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

from halfbyte import display
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.errors import UsageError
from halfbyte.evaluation.answers import AT_ONCE, Answers, compare, read_questions, right_answers
from halfbyte.evaluation.divergence import Divergence
from halfbyte.evaluation.divergence import divergence as measure_divergence
from halfbyte.evaluation.labels import labelled
from halfbyte.evaluation.perplexity import Perplexity
from halfbyte.evaluation.perplexity import perplexity as measure_perplexity
from halfbyte.evaluation.record import about_base, about_text
from halfbyte.evaluation.scorer import Scorer, how_it_ran
from halfbyte.evaluation.texts import read_text, tokens_of
from halfbyte.evaluation.windows import Name, Protocol
from halfbyte.evaluation.windows import protocol as protocol_of
from halfbyte.executors import Progress
from halfbyte.model import load, locate
from halfbyte.models import build_spec
from halfbyte.options import LoadOptions, RunOptions
from halfbyte.progress import shown


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has measured.

    Attributes:
        path: The model's folder or GGUF file.
        conditions: What the figures depend on: text and questions with their SHA-256, the base, and how the model ran.
        perplexity: Of the text, if there is one and no base.
        divergence: From the base on the text, with both perplexities, if there are both.
        answers: To the questions, if there are some; with those of the base, if there is one.
    """

    path: Path
    conditions: Mapping[str, Any]
    perplexity: Perplexity | None = None
    divergence: Divergence | None = None
    answers: Answers | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """Everything by name, in one level, for JSON or a data frame."""
        found: dict[str, Any] = {}
        for part in (self.perplexity, self.divergence):
            found |= asdict(part) if part else {}
        answers = asdict(self.answers) if self.answers else {}
        found |= {name: value for name, value in answers.items() if value is not None}
        return found | dict(self.conditions)

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """The figures in words, hashes left out."""
        return labelled(self.figures)

    def _repr_html_(self) -> str:
        return display.table(self.labelled, caption=str(self.path))


def evaluate(
    model: str | Path | None = None,
    text: str | Path | None = None,
    *,
    base: str | Path | None = None,
    questions: str | Path | None = None,
    protocol: Name = "windows",
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    options: RunOptions | str | None = None,
    progress: Progress | bool | None = None,
    **changes: Unpack[LoadOptions],
) -> Evaluation:
    """Measure the quality of a model: perplexity, divergence from its original, right answers.

    A text alone gives the perplexity; a text and a base give the divergence from the base, with both perplexities;
    questions give the number of right answers.

    Args:
        model: A folder, a GGUF file, a hub id, or None for the pocket model.
        text: A file of UTF-8 text, or `wikitext-2`.
        base: The model it was made from.
        questions: A file of JSON lines, each {"question": …, "answer": …}. An answer is right if it is the same word
            for word.
        protocol: How the text is cut into windows for the perplexity: `windows`, `gptq`, `llama.cpp` or `sliding`.
        window: Tokens per window; by default 2,048, or 512 for `llama.cpp`, and at most the model's context.
        stride: Tokens between windows of `sliding`; a quarter of the window by default.
        max_tokens: Use only the first tokens of the text.
        options: How the model is run, as for `load`. Context and sequences follow from what is measured.
        progress: True for a bar on the terminal or in the notebook, or a function, called as
            progress(what, done, all).
        **changes: Fields of `RunOptions`, such as `kv_dtype="q8"` or `weights="q4g32"`, in place of those in `options`.

    Raises:
        UsageError: There is nothing to measure, an option has no effect or is out of range, a file cannot be read, or
            the two models have different vocabularies.
        ModelNotFoundError, DownloadError, InvalidModelError, UnsupportedModelError, DeviceError: As for `load`.
    """
    if text is None and questions is None:
        raise UsageError("there is nothing to measure.", "Give a text, questions, or both.")
    if stride is not None and protocol != "sliding":
        raise UsageError(f"`stride` has no effect with protocol={protocol!r}.", "Choose protocol='sliding' as well.")
    if protocol != "windows" and (text is None or base is not None):
        raise UsageError(f"protocol={protocol!r} only applies to the perplexity of a text.", "Leave it out.")
    run = RunOptions.of(options, **changes)
    path, base_path = locate(model, None, False), None if base is None else locate(base, None, False)
    asked = None if questions is None else Path(questions)
    conditions: dict[str, Any] = {}
    perplexity = divergence = answers = None
    with shown(progress) as tick:
        if text is not None:
            cut = _protocol(path, protocol, window, stride)
            if base_path is None:
                perplexity, more = _perplexity(path, str(text), cut, max_tokens, run, tick)
            else:
                divergence, more = _divergence(path, base_path, str(text), cut, max_tokens, run, tick)
            conditions |= more
        if asked is not None:
            answers, more = _answers(path, base_path, asked, run, tick)
            conditions |= more
    return Evaluation(path, conditions, perplexity, divergence, answers)


def _perplexity(
    path: Path, text: str, cut: Protocol, max_tokens: int | None, run: RunOptions, tick: Progress
) -> tuple[Perplexity, dict[str, Any]]:
    content = read_text(text, joined="\n\n" if cut.name == "gptq" else "\n")
    scorer = Scorer(path, cut.window, run)
    with scorer.model as model:
        ids = tokens_of(model.tokenizer, content, max_tokens)
        found = measure_perplexity(scorer, ids, cut, tick)
    stepped = {"stride": cut.stride} if cut.name == "sliding" else {}
    return found, about_text(content, Path(text).name) | how_it_ran(model) | stepped


def _divergence(
    path: Path, base: Path, text: str, cut: Protocol, max_tokens: int | None, run: RunOptions, tick: Progress
) -> tuple[Divergence, dict[str, Any]]:
    content = read_text(text)
    scorer = Scorer(path, cut.window, run)
    with scorer.model as model:
        original = Scorer(base, cut.window, device=run.device, gpu=run.gpu)
        with original.model as theirs:
            ids = tokens_of(theirs.tokenizer, content, max_tokens)
            found = measure_divergence(scorer, original, ids, cut, tick)
    conditions = about_text(content, Path(text).name) | {"protocol": cut.name, "window": cut.window}
    return found, conditions | about_base(base) | how_it_ran(model)


def _answers(
    path: Path, base: Path | None, questions: Path, run: RunOptions, tick: Progress
) -> tuple[Answers, dict[str, Any]]:
    asked = read_questions(questions)
    theirs = None
    if base is not None:
        with load(base, device=run.device, gpu=run.gpu, sequences=AT_ONCE) as original:
            theirs = right_answers(original, asked, tick)
    with load(path, run, sequences=AT_ONCE) as model:
        right = right_answers(model, asked, tick)
    conditions = about_text(questions.read_text("utf-8"), questions.name, kind="questions")
    return compare(right, theirs), conditions | (about_base(base) if base else {}) | how_it_ran(model)


def _protocol(path: Path, name: Name, window: int | None, stride: int | None) -> Protocol:
    """The protocol; its default window is at most the model's context."""
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    cut = protocol_of(name, window, stride, spec.bos_token_id)
    return cut if window or cut.window <= spec.context else protocol_of(name, spec.context, stride, spec.bos_token_id)
