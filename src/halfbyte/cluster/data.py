"""Ray Data stages: prompts answered in bulk, and questions asked of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, Dataset

from halfbyte.cluster.lent import as_lent
from halfbyte.errors import UsageError
from halfbyte.evaluation.answers import AT_ONCE, Answers, Question, compare, read_questions, right_answers
from halfbyte.model import AnswerOptions, Model, load
from halfbyte.options import RunOptions

BATCH = 64
"""Rows that an actor gets together."""


@dataclass(frozen=True)
class Subject:
    """A model, and how it runs.

    Attributes:
        model: As `halfbyte.load` takes it; None for the pocket model.
        run: How it runs; `sequences` of its answers are computed at once.
    """

    model: str | None = None
    run: RunOptions = field(default_factory=lambda: RunOptions(sequences=AT_ONCE))
    revision: str | None = None
    offline: bool = False

    def load(self) -> Model:
        """The model, on the GPU that Ray gave this process, or on the CPU."""
        return load(self.model, as_lent(self.run), revision=self.revision, offline=self.offline)


class Generator:
    """A class for `Dataset.map_batches`: holds a model, and answers the prompts of a column.

    Args:
        column: Prompts: texts, messages or token ids.
        into: The column that the texts of the answers become.
        options: Options of `Model.generate`.
    """

    def __init__(self, subject: Subject, column: str, into: str, options: AnswerOptions) -> None:
        self._model = subject.load()
        self._column, self._into, self._options = column, into, options

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the answers."""
        if self._column not in batch:
            raise UsageError(f"there is no column {self._column!r}.", f"There are {', '.join(batch)}.")
        prompts = [_plain(each) for each in batch[self._column]]
        answers = self._model.generate_many(prompts, **self._options)
        return {**batch, self._into: np.array([answer.text for answer in answers], dtype=object)}


def _plain(value: Any) -> Any:
    """A prompt of a column as `Model` takes it: lists come as arrays."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def generate(
    dataset: Dataset,
    subject: Subject,
    *,
    column: str = "prompt",
    into: str = "answer",
    actors: int = 1,
    gpus: int = 0,
    cpus: float = 1.0,
    **options: Unpack[AnswerOptions],
) -> Dataset:
    """A dataset with one more column: the answers to its prompts.

    Args:
        dataset: Its column `column` has prompts: texts, messages or token ids.
        actors: Processes that hold a model each.
        gpus, cpus: What each of them has.
        **options: Options of `Model.generate`; greedy without any.
    """
    return dataset.map_batches(
        Generator, fn_constructor_args=(subject, column, into, options), batch_size=BATCH,
        compute=ActorPoolStrategy(size=actors), num_gpus=gpus, num_cpus=cpus,
    )  # fmt: skip


class Judge:
    """A class for `Dataset.map_batches`: asks the questions of each row of the subject that the row names.

    It holds the model of one subject at a time.
    """

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._subjects = subjects
        self._held: tuple[int, Model] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """For each row its subject, its place, and whether each of its answers is right."""
        right = [
            right_answers(self._model(int(subject)), [Question(**each) for each in questions])
            for subject, questions in zip(batch["subject"], batch["questions"], strict=True)
        ]
        return {"subject": batch["subject"], "place": batch["place"], "right": right}

    def _model(self, number: int) -> Model:
        if self._held is not None and self._held[0] != number:
            self._held[1].close()
            self._held = None
        if self._held is None:
            self._held = number, self._subjects[number].load()
        return self._held[1]


def evaluate(
    subjects: Sequence[Subject],
    questions: Path | Sequence[Question],
    *,
    base: int | None = None,
    actors: int = 1,
    gpus: int = 0,
    cpus: float = 1.0,
) -> list[Answers]:
    """How many questions each of several models, or of several ways to run one, answers right.

    Args:
        subjects: What is asked. Each actor loads each of them at most once if their rows come in order.
        questions: Questions, or a file as `halfbyte eval answers` takes it.
        base: The place of the subject that the others were made from, if one was.
        actors: Processes that hold a model each.
        gpus, cpus: What each of them has.

    Returns:
        The counts of each subject.

    Raises:
        UsageError: The file cannot be read, or is not of that form.
    """
    asked = read_questions(questions) if isinstance(questions, Path) else list(questions)
    rows = [
        {"subject": number, "place": place, "questions": [vars(each) for each in asked[place : place + BATCH]]}
        for number in range(len(subjects))
        for place in range(0, len(asked), BATCH)
    ]
    judged = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Judge, fn_constructor_args=(list(subjects),), batch_size=1, compute=ActorPoolStrategy(size=actors),
        num_gpus=gpus, num_cpus=cpus,
    )  # fmt: skip
    found = sorted(judged.take_all(), key=lambda row: (row["subject"], row["place"]))
    right = [
        [bool(each) for row in found if row["subject"] == number for each in row["right"]]
        for number in range(len(subjects))
    ]
    return [compare(each, right[base] if base is not None else None) for each in right]
