"""`halfbyte profile`: its parts add up, its files hold the same events, and its mistakes are sentences."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from halfbyte.model import load
from halfbyte.models.catalog import CATALOG
from halfbyte.plan import make_plan
from halfbyte.report.parts import parts
from halfbyte.report.profile import AROUND, Profile, profile
from halfbyte.report.profile_tables import about, tables
from halfbyte.report.subject import synthetic
from halfbyte.report.trace import Event, chrome_trace, counts, events
from tests.unit.cli_fakes import error_lines, halfbyte

PROMPT_TOKENS = 300
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def watched() -> Profile:
    """An answer of the pocket model to 300 tokens: two batches of prompt, then decoding."""
    model = load(threads=1, context=512)
    return profile(model, list(range(100, 100 + PROMPT_TOKENS)), max_tokens=NEW_TOKENS)


def test_operations_add_up_to_the_batches(watched: Profile) -> None:
    assert 0.95 <= watched.covered("prefill") <= 1
    assert 0.95 <= watched.covered("decode") <= 1


def test_operations_and_parts_are_two_views_of_the_same_time(watched: Profile) -> None:
    steps = sum(span.seconds for span in watched.spans if span.lane == "cpu")
    around = sum(line.seconds for line in watched.lines if line.name in AROUND)
    for lines in (watched.lines, watched.parts):
        assert sum(line.seconds for line in lines) == pytest.approx(steps + around)
    assert sum(line.flops for line in watched.lines) == pytest.approx(sum(line.flops for line in watched.parts))


def test_tables_add_up_to_the_phase(watched: Profile) -> None:
    for title, rows in tables(watched):
        milliseconds = watched.seconds("prefill" if title.startswith("prefill") else "decode") * 1000
        assert sum(float(row[2]) for row in rows[1:]) == pytest.approx(milliseconds, abs=0.1)
        assert rows[-1][0] == "rest"
        assert rows[-1][4:] == ["–", "–", "–"]
        assert {"schedule", "state", "start", "sample"} <= {row[0] for row in rows}


def test_decoding_moves_at_least_the_weights_and_prefill_as_many_operations_as_it_has_tokens(watched: Profile) -> None:
    layers = 8
    matrices = sum(t.nbytes for t in watched.plan.of_kind("weight"))
    moved = sum(line.nbytes for line in watched.parts if line.phase == "decode")
    assert matrices * (NEW_TOKENS - 1) < moved < 1.5 * matrices * (NEW_TOKENS - 1)
    gate_up = {line.phase: line for line in watched.parts if line.name == "gate_up"}
    assert gate_up["decode"].calls == layers * (NEW_TOKENS - 1)
    each = gate_up["decode"].flops / (NEW_TOKENS - 1)
    assert gate_up["prefill"].flops == pytest.approx(PROMPT_TOKENS * each)


@pytest.mark.parametrize(
    ("overhead", "noise", "said"),
    [
        (-0.363, 0.125, "no measurable time: answers without it vary by ±12.5%"),
        (0.1, 0.125, "no measurable time"),
        (0.0, 0.0, "no measurable time"),
        (0.079, 0.02, "7.9% more time; answers without it vary by ±2.0%"),
    ],
)
def test_a_cost_of_watching_within_the_noise_is_not_stated(
    watched: Profile, overhead: float, noise: float, said: str
) -> None:
    assert watched.noise > 0
    assert said in about(replace(watched, overhead=overhead, noise=noise))[1]


def test_every_lane_is_in_order_and_without_overlap(watched: Profile) -> None:
    found = events(watched)
    for lane in ("tokens", "host", "cpu"):
        mine = [event for event in found if event.lane == lane]
        assert all(b.start_us >= a.start_us + a.us - 0.01 for a, b in pairwise(mine))
    assert sum(event.lane == "tokens" for event in found) == NEW_TOKENS


def test_the_trace_holds_the_calls_of_the_tables(watched: Profile) -> None:
    found = events(watched)
    calls = {("cpu", line.phase, line.name): line.calls for line in watched.parts if line.name not in AROUND}
    assert {key: n for key, n in counts(found).items() if key[0] == "cpu"} == calls
    trace = json.loads(json.dumps(chrome_trace(found)))["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in trace if event["ph"] == "M"}
    held = Counter((lanes[e["tid"]], e["cat"], e["name"]) for e in trace if e["ph"] == "X")
    assert held == counts(found)


def test_a_trace_is_in_microseconds() -> None:
    event = chrome_trace([Event("cpu", "qkv", "decode", 1.5, 2.0)])["traceEvents"][1]
    assert (event["ph"], event["ts"], event["dur"]) == ("X", 1.5, 2.0)


@pytest.mark.parametrize("name", CATALOG)
@pytest.mark.parametrize("fused", [True, False])
def test_every_family_has_the_parts_of_a_layer_fused_or_not(name: str, fused: bool) -> None:
    model = synthetic(name, layers=4)
    plan = make_plan(model.spec, model.source.format, tokens=1, context=64, fused=fused)
    found = Counter(parts(plan))
    once_a_layer = {"qkv", "o", "down"} | ({"gate_up"} if fused else set())
    assert {part for part in once_a_layer if found[part] == 4} == once_a_layer
    assert found["attention"] == len(model.spec.attentions)
    inputs = {"layer inputs"} if model.spec.layer_inputs else set()
    own = {"lfm2": {"convolution"}, "qwen3_5_text": {"convolution", "delta rule", "gates"}}
    assert found.keys() == {
        "embedding", "qkv", "rope + cache", "attention", "o", "gate_up", "down", "norms", "LM head",
        *own.get(model.spec.model_type, inputs),
    }  # fmt: skip


def test_the_command_writes_a_page_and_a_trace(tmp_path: Path) -> None:
    html, trace = tmp_path / "p.html", tmp_path / "p.json"
    result = halfbyte(
        "profile", "What is </script>?", "-n", "2", "--threads", "1", "--html", str(html), "--trace", str(trace)
    )
    assert result.exit_code == 0
    assert "decode by part: 1 tokens in" in result.stdout
    answer = result.stdout.split("\n\n")[0]
    assert answer == halfbyte("run", "What is </script>?", "-n", "2", "--threads", "1").stdout.strip()
    assert f"Answer: {answer}" in html.read_text()
    assert "What is \\u003c/script>?" in html.read_text()
    assert json.loads(trace.read_text())["displayTimeUnit"] == "ms"
    before = html.read_text(), trace.read_text()
    for option, file in (("--html", html), ("--trace", trace)):
        refused = halfbyte("profile", "x", "-n", "1", option, str(file))
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert f"{file} already exists" in error_lines(refused)[0]
    assert before == (html.read_text(), trace.read_text())
    assert halfbyte("profile", "x", "-n", "1", "--html", str(html), "--overwrite").exit_code == 0
    assert html.read_text() != before[0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("x", "--device", "reference"), 2, "device reference does not time its steps"),
        (("x " * 600, "--context", "64"), 6, "tokens; the context holds 64"),
        (("x", "-m", "/no/such/folder"), 3, "/no/such/folder"),
        (("x", "-n", "1", "--html", "/dev/full"), 74, "the disk is full"),
        (("x", "-n", "1", "--trace", "/no/such/file"), 74, "No such file"),
    ],
)
def test_mistakes_are_sentences(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = halfbyte("profile", *arguments)
    assert result.exit_code == code
    assert words in " ".join(error_lines(result))
