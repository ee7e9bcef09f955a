"""EleutherAI's harness gets over HTTP what Halfbyte measures itself; nothing is asked of any other machine.

Its answers and log-likelihoods are held to `halfbyte.evaluation` and to the Python API, question by question. The
harness finds the tokenizer on the server, as it does for users who tell it an address only.
"""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from halfbyte.evaluation.answers import AT_ONCE, read_questions, right_answers
from halfbyte.evaluation.perplexity import perplexity
from halfbyte.evaluation.scorer import Scorer, log_probabilities
from halfbyte.evaluation.texts import tokens_of
from halfbyte.evaluation.windows import Protocol, Window
from halfbyte.model import POCKET, Model, load
from tests.unit.cli_fakes import halfbyte

from .running import Running, running, source

ASKED = "<|user|>\n{{question}}<|end|>\n<|assistant|>\n"
CHOICES: list[dict[str, Any]] = [
    {"question": question, "choices": choices.split(), "answer": answer}
    for question, choices, answer in [
        ("Which command lists files?", "rm ls cd mv", 1),
        ("Which command removes a file?", "rm cat df ps", 0),
        ("Which command copies a file?", "du ln cp wc", 2),
        ("Which command shows the working directory?", "top tar sed pwd", 3),
        ("Which command searches text?", "grep kill date mkdir", 0),
        ("Which command makes a folder?", "who mkdir head sort", 1),
        ("Which command shows the free space of disks?", "df cal tee cut", 0),
        ("Which command ends a process?", "tail nano kill echo", 2),
        ("Which command makes an archive?", "ssh ping less tar", 3),
        ("Which command counts lines?", "env wc man yes", 1),
        ("Which command sorts lines?", "mv cp sort ls", 2),
        ("Which command shows the date?", "touch chmod find date", 3),
    ]
]
LETTERS = ["A", "B", "C", "D"]
FUNCTIONS = [
    {"prompt": f'def {name}({given}):\n    """{what}"""\n    return {begun}', "test": test, "entry_point": name}
    for name, given, what, begun, test in [
        ("f", "a, b", "Return the sum of a and b.", "a +", "def check(f):\n    assert f(2, 3) == 5\n"),
        ("copy", "", "Copy a file.", '"cp', 'def check(f):\n    assert f() == "cp"\n'),
        ("word", "s", "The number of words.", "len(s.split(", 'def check(f):\n    assert f("a b") == 2\n'),
        ("disk", "", "The command that shows free disk space.", '"df', 'def check(f):\n    assert f() == "df -h"\n'),
    ]
]
UNTIL = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n\n"]
MOST = 24
WINDOW, WINDOWS = 64, 4

Found = dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
"""The figures of each task, and its samples."""


def program(function: dict[str, Any], completion: str) -> str:
    return f"{function['prompt']}{completion}"


def programs(answers: list[list[str]], functions: list[dict[str, Any]]) -> list[list[str]]:
    return [[program(function, each) for each in few] for few, function in zip(answers, functions, strict=True)]


def pass_at_1(references: list[str], predictions: list[list[str]]) -> float:
    """The share of programs that do what their test asks, each in a process of its own."""
    passed = [
        subprocess.run([sys.executable, "-I", "-c", f"{written}\n{references[0]}"], capture_output=True, timeout=60)
        for written in predictions[0]
    ]
    return sum(ran.returncode == 0 for ran in passed) / len(passed)


def multiple_choice(asked: dict[str, Any]) -> str:
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, asked["choices"], strict=True))
    return f"{asked['question']}\n{listed}\nAnswer:"


@contextmanager
def only_this_machine() -> Iterator[None]:
    """No other one is spoken to."""
    others, connect = [], socket.socket.connect

    def spoken_to(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            others.append(address)
            raise ConnectionRefusedError(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", spoken_to)
        yield
    assert others == []


def run_on_cpu() -> Model:
    """The model as `halfbyte eval` loads it."""
    return load(device="cpu", threads=2, sequences=AT_ONCE)


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with run_on_cpu() as found:
        yield found


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    found = Scorer(POCKET, 256, device="cpu", threads=2)
    with found.model:
        yield found


@pytest.fixture(scope="module")
def questions(shared: Path) -> Path:
    return shared / "data" / "questions-dev.jsonl"


@pytest.fixture(scope="module")
def text(shared: Path, model: Model) -> str:
    """A text of as many tokens as fill the harness's windows."""
    ids = tokens_of(model.tokenizer, (shared / "data" / "books-dev.txt").read_text(), WINDOW * WINDOWS)
    found = model.decode(ids.tolist())
    assert model.encode(found, raw=True) == ids.tolist()
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running([source(make=run_on_cpu)]) as found:
        yield found


@pytest.fixture(scope="module")
def found(server: Running, questions: Path, text: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the harness found."""
    folder = tmp_path_factory.mktemp("tasks")

    def written(name: str, rows: list[dict[str, Any]]) -> Path:
        file = folder / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    def mean(metric: Any) -> dict[str, Any]:
        return {"metric": metric, "aggregation": "mean", "higher_is_better": True}

    def task(name: str, kind: str, data: Path, metric: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "task": name, "output_type": kind, "test_split": "test", "num_fewshot": 0, "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "metric_list": [metric], **more,
        }  # fmt: skip

    def choosing(name: str) -> dict[str, Any]:
        return task(name, "multiple_choice", written("mmlu.jsonl", CHOICES), mean("acc"), doc_to_text=multiple_choice,
                    doc_to_choice=LETTERS, doc_to_target="answer")  # fmt: skip

    perplexities = {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    scored = [
        task("likelihoods", "loglikelihood", questions, mean("acc"), doc_to_text=ASKED, doc_to_target="{{answer}}",
             target_delimiter=""),
        choosing("mmlu"),
        task("humaneval", "generate_until", written("humaneval.jsonl", FUNCTIONS), mean(pass_at_1), unsafe_code=True,
             doc_to_text="{{prompt}}", doc_to_target="{{test}}\ncheck({{entry_point}})",
             generation_kwargs={"until": UNTIL, "max_gen_toks": MOST, "do_sample": False},
             filter_list=[{"name": "programs", "filter": [{"function": "custom", "filter_fn": programs}]}]),
    ]  # fmt: skip
    rolling = task("rolling", "loglikelihood_rolling", written("text.jsonl", [{"text": text}]), perplexities,
                   doc_to_text="", doc_to_target="{{text}}")  # fmt: skip
    answered = task("answers", "generate_until", questions, mean("exact_match"), doc_to_text="{{question}}",
                    doc_to_target="{{answer}}", generation_kwargs={"until": [], "max_gen_toks": 120})  # fmt: skip

    def evaluated(kind: str, path: str, tasks: list[dict[str, Any]], **options: Any) -> Found:
        options = {"model": "pocket", "base_url": server.url + path, "num_concurrent": 4, **options}
        made = simple_evaluate(
            f"local-{kind}", options, tasks, task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
            confirm_run_unsafe_code=True, apply_chat_template=kind == "chat-completions",
        )  # fmt: skip
        assert made is not None
        return {task["task"]: (made["results"][task["task"]], made["samples"][task["task"]]) for task in tasks}

    with only_this_machine():
        return {
            **evaluated("completions", "/v1/completions", scored),
            **evaluated("completions", "/v1/completions", [rolling], max_length=WINDOW + 2),
            **evaluated(  # one after the other, with the tokenizer of a folder
                "completions",
                "/v1/completions",
                [choosing("mmlu by its files")],
                tokenizer=str(POCKET),
                tokenizer_backend="huggingface",
                num_concurrent=1,
                batch_size=8,
            ),
            **evaluated("chat-completions", "/v1/chat/completions", [answered]),
        }


def likelihood(scorer: Scorer, before: list[int], after: list[int]) -> tuple[float, bool]:
    """How likely tokens are after others, as a logarithm by `halfbyte eval`, and whether each is the most likely."""
    total, greedy = 0.0, True
    for scored in scorer.score([Window(np.array(before + after, np.int32), len(before))]):
        rows = log_probabilities(scored.logits)
        total += float(rows[np.arange(len(rows)), scored.targets].sum())
        greedy &= bool((rows.argmax(axis=1) == scored.targets).all())
    return total, greedy


def test_answers_are_those_that_halfbyte_counts(found: Found, model: Model, questions: Path) -> None:
    right = right_answers(model, read_questions(questions))
    figures, samples = found["answers"]
    assert [sample["exact_match"] == 1 for sample in samples] == right
    assert figures["exact_match,none"] == sum(right) / len(right)
    assert 0.9 < sum(right) / len(right) < 1


def test_log_likelihoods_of_answers_are_those_that_halfbyte_measures(
    found: Found, model: Model, scorer: Scorer, questions: Path
) -> None:
    figures, samples = found["likelihoods"]
    greedy = []
    for question, sample in zip(read_questions(questions), samples, strict=True):
        before = model.encode([{"role": "user", "content": question.question}])
        expected, is_greedy = likelihood(scorer, before, model.tokenizer.encode_inside(question.answer))
        assert sample["resps"][0][0] == (pytest.approx(expected, abs=1e-4), is_greedy)
        greedy.append(is_greedy)
    assert figures["acc,none"] == np.mean(greedy)
    assert 0.5 < np.mean(greedy) < 1


def test_multiple_choice_has_the_figure_of_a_direct_evaluation(found: Found, model: Model, scorer: Scorer) -> None:
    figures, samples = found["mmlu"]
    right = []
    for asked, sample in zip(CHOICES, samples, strict=True):
        before = model.encode(multiple_choice(asked), raw=True)
        expected = [likelihood(scorer, before, model.encode(f" {letter}", raw=True))[0] for letter in LETTERS]
        assert [each[0][0] for each in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        right.append(int(np.argmax(expected)) == asked["answer"])
    assert figures["acc,none"] == np.mean(right)


def test_a_tokenizer_from_a_folder_gives_what_the_servers_gives(found: Found) -> None:
    by_files, by_server = found["mmlu by its files"], found["mmlu"]
    assert by_files[0]["acc,none"] == by_server[0]["acc,none"]
    for one, other in zip(by_files[1], by_server[1], strict=True):
        assert [each[0][0] for each in one["resps"]] == pytest.approx([each[0][0] for each in other["resps"]], abs=1e-4)


def test_programs_pass_as_often_as_those_of_a_direct_evaluation(found: Found, model: Model) -> None:
    figures, samples = found["humaneval"]
    passed = []
    for function, sample in zip(FUNCTIONS, samples, strict=True):
        completion = model.generate(function["prompt"], raw=True, max_tokens=MOST, stop=UNTIL).text
        assert sample["resps"] == [[completion]]
        test = f"{function['test']}\ncheck({function['entry_point']})"
        passed.append(pass_at_1([test], [[program(function, completion)]]))
    assert figures["pass_at_1,programs"] == np.mean(passed)
    assert 0 < np.mean(passed) < 1


def test_a_rolling_perplexity_is_that_of_windows_that_slide_by_all_but_a_token(
    found: Found, model: Model, scorer: Scorer, text: str
) -> None:
    """The harness puts the end token before a text without BOS; each window sees the last token of the one before."""
    end = model.tokenizer.eos_token_id
    assert end is not None
    ids = np.array([end, *model.encode(text, raw=True)], np.int32)
    expected = perplexity(scorer, ids, Protocol("sliding", WINDOW + 1, WINDOW))
    (sample,) = found["rolling"][1]
    assert math.exp(-sample["resps"][0][0] / (len(ids) - 1)) == pytest.approx(expected.ppl, rel=1e-4)


def test_perplexity_over_http_is_what_halfbyte_prints(server: Running, model: Model, shared: Path) -> None:
    """Windows as `halfbyte eval perplexity` cuts them, scored as a prompt whose tokens are told."""
    text = shared / "data" / "books-dev.txt"
    options = ("--device", "cpu", "--window", "96", "--max-tokens", "700", "--no-store", "--json")
    printed = json.loads(halfbyte("eval", "perplexity", "-m", str(POCKET), "--text", str(text), *options).stdout)
    windows = Protocol("windows", 96).cut(tokens_of(model.tokenizer, text.read_text(), 700))
    asked = {"prompt": [window.ids.tolist() for window in windows], "echo": True, "logprobs": 0, "max_tokens": 0}
    choices = server.post("/v1/completions", asked).json()["choices"]
    told = np.concatenate([choice["logprobs"]["token_logprobs"][1:] for choice in choices]).astype(float)
    assert len(told) == printed["tokens"]
    assert math.exp(-told.mean()) == pytest.approx(printed["ppl"], rel=1e-4)
