"""Batches beside other engines: the same prompts for all, new ones at every round, and only whole answers count."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import measure, report
from benchmarks.peers.batched_bench import BatchedBench
from benchmarks.peers.catalog import HALFBYTE, LLAMA_CPP
from benchmarks.peers.environment import PeerError
from benchmarks.peers.measure import Measurement, Task
from benchmarks.peers.models import SyntheticModel
from benchmarks.peers.remote import Remote
from halfbyte.cpu import machine

VOCABULARY = 8192
LLAMA = "llama-3.2-1b"
BATCH = Task("batch", 16, 4, sequences=3)


class Asked:
    """Notes what it was asked, and says that it took as many seconds as it was asked times."""

    def __init__(self, name: str, asked: list[tuple[str, str, dict[str, Any]]]) -> None:
        self.name, self.asked, self.count = name, asked, 0

    def ask(self, do: str, **request: Any) -> float:
        self.count += 1
        self.asked.append((self.name, do, request))
        return float(self.count)


def test_a_batch_counts_the_new_tokens_of_all() -> None:
    assert (BATCH.tokens, BATCH.context, BATCH.prompt) == (12, 20, 16)
    assert BATCH.title == "3 together, 16 + 4 tokens each"
    assert report.speeds(Measurement(HALFBYTE, 2, BATCH, [3.0, 1.5])) == [4.0, 8.0]


def test_engines_take_turns_on_the_same_prompts_which_are_new_at_every_round() -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []
    remotes = {name: Asked(name, asked) for name in ("a", "b")}
    rates = iter([1.0, 2.0, 3.0])
    rows = measure.time_task(
        remotes, lambda name: Measurement(name, 2, BATCH), BATCH, 2, VOCABULARY, lambda: next(rates)
    )
    assert [name for name, _, _ in asked] == ["a", "b", "b", "a", "a", "b"]
    assert {(do, request["tokens"]) for _, do, request in asked} == {("batch", 4)}
    rounds = [[request["prompts"] for _, _, request in asked[at : at + 2]] for at in (0, 2, 4)]
    assert all(first == second for first, second in rounds)
    prompts = [tuple(ids) for first, _ in rounds for ids in first]
    assert len(set(prompts)) == 9, "no prompt comes twice, so that no cache helps"
    assert {len(ids) for ids in prompts} == {16}
    assert [row.seconds for row in rows] == [[2.0, 3.0]] * 2, "the first round warms up"
    assert [row.bandwidth for row in rows] == [[2.0, 3.0]] * 2


def test_batches_of_different_sizes_have_no_prompt_in_common() -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []
    for sequences in (1, 2, 8):
        task = Task("batch", 16, 4, sequences)
        measure.time_task({"a": Asked("a", asked)}, lambda name: Measurement(name, 2, BATCH), task, 3, VOCABULARY, None)
    prompts = [tuple(ids) for _, _, request in asked for ids in request["prompts"]]
    assert len(prompts) == len(set(prompts)) == 4 * 11


def test_a_gpu_has_no_bandwidth_of_the_host_and_a_place_of_its_own() -> None:
    remotes = {name: Asked(name, []) for name in (HALFBYTE, LLAMA_CPP)}
    rows = measure.time_task(
        remotes, lambda name: Measurement(name, 1, BATCH, device="gpu"), BATCH, 1, VOCABULARY, None
    )
    lines = [" ".join(line.split()) for line in report.table(rows).splitlines()]
    assert lines[0] == "3 together, 16 + 4 tokens each, GPU"
    assert lines[2:4] == ["Halfbyte 6.0 6.0 – 6.0 1.00", "llama.cpp 6.0 6.0 – 6.0 1.00"]
    (line, _) = report.records(rows, time="", machine={}, model={}, about={})
    assert (line["device"], line["bandwidth"], line["share"], line["tokens_per_s"]) == ("gpu", [], None, 6.0)
    assert line["task"] == {"kind": "batch", "size": 16, "steps": 4, "sequences": 3, "prompt": 16}


def test_halfbyte_answers_a_batch_that_is_not_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(machine.__file__).parents[2]))
    model = SyntheticModel(LLAMA, layers=1, vocabulary=VOCABULARY, cache=tmp_path)
    prompts = [measure.token_ids(VOCABULARY, 70, seed) for seed in range(2)]
    with Remote(sys.executable, "halfbyte", model.source("halfbyte"), 1, 74, tmp_path / "log", sequences=2) as remote:
        assert remote.ask("batch", prompts=prompts, tokens=4) > 0
        with pytest.raises(PeerError, match="4 tokens instead of 4, 69 of the prompt in the cache"):
            remote.ask("batch", prompts=prompts[::-1], tokens=4)


SAYS = """\
import json, sys
if sys.argv[1:] == ["--version"]:
    print("ggml_cuda_init: found 1 CUDA devices", file=sys.stderr)
    print("version: 9190 (b64739e)", file=sys.stderr)
    sys.exit()
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert (given["--model"], given["--n-gpu-layers"], given["--ctx-size"]) == ("x.gguf", "999", "60"), given
print("load_tensors: offloaded 17/17 layers to GPU", file=sys.stderr)
found = {{"n_kv_max": 60, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": 999,
  "n_threads": 8, "n_threads_batch": 8, "pp": int(given["-npp"]), "tg": int(given["-ntg"]), "pl": int(given["-npl"]),
  "n_kv": 57, "t_pp": 0.25, "speed_pp": 192.0, "t_tg": 0.5, "speed_tg": 18.0, "t": 0.75, "speed": 76.0}}
{more}
"""
"""Prints what tools/batched-bench of llama.cpp b9190 prints with `--output-format jsonl`."""


def program(folder: Path, more: str) -> Path:
    """A stand-in for llama-batched-bench."""
    script = folder / "llama-batched-bench"
    script.write_text(f"#!{sys.executable}\n" + SAYS.format(more=more))
    script.chmod(0o755)
    return script


def test_llama_cpps_own_program_is_asked_for_the_same_and_both_phases_count(tmp_path: Path) -> None:
    bench = BatchedBench(program(tmp_path, "print(json.dumps(found))"), Path("x.gguf"))
    assert bench.versions == {"llama.cpp": "9190 (b64739e)"}
    assert bench.ask("batch", prompts=[[1] * 16] * 3, tokens=4) == 0.75
    assert bench.settings["n_ubatch"] == "512"
    assert json.loads(json.dumps(bench.settings)) == bench.settings
    with pytest.raises(PeerError, match="cannot do logits"):
        bench.ask("logits", prompts=[[1]], tokens=4)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("sys.exit('error: out of memory')", r"error: out of memory \(exit status 1\)"),
        ("print('main: n_kv_max = 60')", "printed no measurement"),
        ("print(json.dumps(found | {'tg': 4}))", "measured something else"),
    ],
)
def test_a_program_that_does_something_else_is_an_error_in_a_line(tmp_path: Path, more: str, words: str) -> None:
    bench = BatchedBench(program(tmp_path, more), Path("x.gguf"))
    with pytest.raises(PeerError, match=words):
        bench.ask("batch", prompts=[[1] * 16] * 3, tokens=4)


def test_a_program_that_is_not_there_is_an_error_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nowhere cannot be run"):
        BatchedBench(tmp_path / "nowhere", Path("x.gguf"))
