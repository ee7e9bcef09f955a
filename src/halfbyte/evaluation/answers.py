"""Questions with one right answer: how many of them a model answers word for word."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import UsageError
from halfbyte.evaluation.perplexity import Tick
from halfbyte.model import Model
from halfbyte.user_files import read_text

AT_ONCE = 16


@dataclass(frozen=True)
class Question:
    """A question and its right answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Answers:
    """Right answers of a model; if its base was asked too, how many that had right, and how many of those were kept."""

    right: int
    total: int
    kept: int | None = None
    base_right: int | None = None


def read_questions(file: Path) -> list[Question]:
    """Questions from lines of JSON, each {"question": …, "answer": …}.

    Raises:
        UsageError: The file cannot be read, or a line is not of that form.
    """
    lines = [line for line in read_text(file, "Give a file of JSON lines.").splitlines() if line.strip()]
    questions = [_question(file, number, line) for number, line in enumerate(lines, 1)]
    if not questions:
        raise UsageError(f"{file} has no questions.", 'Each line is {"question": …, "answer": …}.')
    return questions


def _question(file: Path, number: int, line: str) -> Question:
    try:
        value = json.loads(line)
        question, answer = value["question"], value["answer"]
    except (ValueError, KeyError, TypeError):
        question = answer = None
    if not isinstance(question, str) or not isinstance(answer, str):
        raise UsageError(f"{file}, line {number} is not a question.", 'Each line is {"question": …, "answer": …}.')
    return Question(question, answer)


def right_answers(model: Model, questions: list[Question], tick: Tick = lambda what, done, total: None) -> list[bool]:
    """For each question, whether the greedy answer is exactly the right text; `sequences` of them at once."""
    answers = [
        model.submit(question.question, max_tokens=len(model.encode(question.answer, raw=True)) + 8)
        for question in questions
    ]
    right = []
    for question, answer in zip(questions, answers, strict=True):
        right.append(answer.whole().text == question.answer)
        tick("answers", len(right), len(questions))
    return right


def compare(right: list[bool], base: list[bool] | None) -> Answers:
    """The counts, with those of a base if it was asked too."""
    if base is None:
        return Answers(sum(right), len(right))
    return Answers(sum(right), len(right), sum(r and b for r, b in zip(right, base, strict=True)), sum(base))
