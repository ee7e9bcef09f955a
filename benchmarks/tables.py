"""The tables of the documentation, made from the files in benchmarks/results.

    python -m benchmarks.tables            writes them into the pages
    python -m benchmarks.tables --check    changes nothing; exit code 1 if a page is out of date

A page marks the place of a table with `<!-- table NAME -->` and `<!-- end -->`. Every figure is computed from the raw
samples of the results, except those of `LLAMA_BENCH`, of which no samples exist.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.catalog import HALFBYTE, PEERS
from halfbyte.report import tables
from halfbyte.report.schema import Record, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks" / "README.md")
POCKET = ROOT / "src" / "halfbyte" / "pocket" / "halfbyte.json"

MODELS = {
    "pocket": "pocket model",
    "phi-4-mini": "Phi-4-mini",
    "phi-3.5-mini": "Phi-3.5-mini",
    "phi-4": "Phi-4 (14B)",
    "llama-3.2-1b": "Llama-3.2-1B",
    "llama-3.2-3b": "Llama-3.2-3B",
    "llama-3.1-8b": "Llama-3.1-8B",
    "mistral-7b-v0.3": "Mistral-7B",
    "gemma-3-1b": "Gemma-3-1B",
    "gemma-3-4b": "Gemma-3-4B",
}
"""Models in the order of the tables, by the names that results use."""

LLAMA_BENCH = {
    "phi-4-mini": (358, 16_606, 15_846),
    "llama-3.2-1b": (810, 38_652, 37_003),
    "llama-3.1-8b": (279, 10_142, 9_669),
}
"""llama.cpp with CUDA on an NVIDIA H200: tokens/s of decode, of prefill of 512 and of 2,048 tokens.

Noted from `llama-bench` (Q4_0, random weights, 3 repetitions, built without flash attention); no samples were kept.
"""


LLAMA_TOGETHER = {"llama-3.2-1b": (639, 2_135, 2_898, 3_163), "llama-3.1-8b": (255, 705, 1_078, 1_208)}
"""llama.cpp with CUDA on an NVIDIA H200: tokens/s of 1, 8, 32 and 64 sequences, prompts of 128 and 64 new tokens.

Noted by hand; no samples were kept.
"""


@dataclass(frozen=True)
class Results:
    """A file of results, with the commits that added its lines."""

    name: str
    commits: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where it is."""
        return RESULTS / self.name

    def records(self) -> list[Record]:
        """What `halfbyte bench` wrote."""
        return read(self.path)

    def lines(self) -> list[dict[str, Any]]:
        """What `benchmarks.peers` or `benchmarks.serving` wrote."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


H200 = (
    Results("nvidia-h200/bench-2026-11-22.jsonl", ("5399b72",)),
    Results("nvidia-h200/bench-2026-11-21.jsonl", ("7389829", "87625bd")),
)
H200_TOGETHER = Results("nvidia-h200/bench-2026-11-29.jsonl", ("78f19a3", "c3e5192"))
H200_SERVING = Results("nvidia-h200/serving-2026-11-30.jsonl", ("108b382",))
ZEN5 = Results("amd-epyc-zen5-2-cores/bench-2026-11-21.jsonl", ("7b7bfd4",))
ZEN5_PEERS = Results("amd-epyc-zen5-2-cores/peers-2026-11-21.jsonl", ("d53094c", "d12c6bc"))
ZEN4_PEERS = Results("amd-epyc-zen4-2-cores/peers-2026-11-21.jsonl", ("6301fa0",))

Cells = list[str]
Figure = Callable[[Record], tables.Figure | None]
COLUMNS: dict[str, Figure] = {column.name: column.figure for column in tables.COLUMNS}
SPEED, SHARE, GPU, HOST = (COLUMNS[n] for n in ("tokens/s", "% of read bandwidth", "GPU ms/token", "host ms/token"))
TASKS = (("prefill", 256), ("prefill", 1024), ("decode", 0), ("decode", 4096))


def main() -> None:
    """Write or check every page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is out of date")
    check = parser.parse_args().check
    stale = [page for page in PAGES if filled(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        if check:
            print(f"{page.relative_to(ROOT)} is out of date: run python -m benchmarks.tables", file=sys.stderr)
        else:
            page.write_text(filled(page), encoding="utf-8")
    sys.exit(bool(stale) and check)


def filled(page: Path) -> str:
    """The text of a page with its tables as the results give them."""

    def table(match: re.Match[str]) -> str:
        body, sources = TABLES[match[1]]()
        return f"<!-- table {match[1]} -->\n{body}\n{_origin(sources, page)}<!-- end -->"

    return re.sub(r"<!-- table ([\w-]+) -->\n.*?<!-- end -->", table, page.read_text(encoding="utf-8"), flags=re.DOTALL)


def _origin(sources: Sequence[Results], page: Path) -> str:
    """A line for each file that a table comes from: its date, the commits that recorded it, a link."""
    return "".join(
        f"Measured {source.path.stem.split('-', 1)[1]}, recorded in {' and '.join(f'`{c}`' for c in source.commits)}: "
        f"[{source.name}]({os.path.relpath(source.path, page.parent)}).\n"
        for source in sources
    )


def _pipe(head: Cells, rows: Sequence[Cells]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float) -> str:
    """With one decimal below a hundred."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"


def _of(figure: Figure, record: Record, digits: int | None = None) -> str:
    found = figure(record)
    if found is None:
        return tables.NONE
    return _number(found.value) if digits is None else f"{found.value:,.{digits}f}"


def _with_spread(figure: Figure, record: Record, digits: int) -> str:
    found = figure(record)
    return tables.NONE if found is None else f"{found.value:,.{digits}f} ±{found.spread:.1%}"


def _prefill_speed(record: Record) -> tables.Figure | None:
    """Tokens of the prompt a second, up to the first new token."""
    took = tables.prefill_ms(record)
    return took and tables.Figure(1000 * record.case.prompt_tokens * record.case.batch / took.value)


def _named(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Models in the order of the tables, each with its records."""
    found = ((title, [r for r in records if r.model["name"] == name]) for name, title in MODELS.items())
    return [(title, own) for title, own in found if own]


def _case(records: Sequence[Record], *, prompt: int = 512, depth: int = 0, each: bool = False) -> Record:
    """The one record of a case that is no variant."""
    (found,) = (
        r
        for r in records
        if (r.case.prompt_tokens, r.case.depth, bool(r.settings["each_token"])) == (prompt, depth, each)
        and not r.settings["variant"]
    )
    return found


def _h200() -> list[tuple[str, str, list[Record]]]:
    """Model, date and records, for the models of each file."""
    rows = []
    for source in H200:
        usual = [r for r in source.records() if not r.settings["variant"]]
        rows += [(title, own[0].time[:10], own) for title, own in _named(usual)]
    return rows


def h200_decode() -> tuple[str, Sequence[Results]]:
    """Decode on an H200."""
    head = ["model", "measured", "tokens/s", "% of read bandwidth", "GPU ms per token", "host ms per token"]
    rows = []
    for title, date, own in _h200():
        usual = _case(own)
        cells = [_of(SPEED, usual, 0), _of(SHARE, usual, 0), _of(GPU, usual, 3), _of(HOST, usual, 2)]
        others = [_case(own, each=True), _case(own, prompt=16, depth=8192)]
        rows.append([title, date, *cells, *(_of(SPEED, r, 0) for r in others)])
    return _pipe([*head, "each token read back", "at a depth of 8,192"], rows), H200


def h200_prefill() -> tuple[str, Sequence[Results]]:
    """Prefill, loading, memory and dispatches on an H200."""
    head = ["model", "512 tokens, tokens/s", "2,048 tokens, tokens/s", "first token after 512, ms", "load s"]
    digits = {"first token ms": 0, "load s": 2, "device MB": 0, "host MB": 0}
    rows = []
    for title, _, own in _h200():
        usual = _case(own)
        speeds = [_of(_prefill_speed, usual, 0), _of(_prefill_speed, _case(own, prompt=2048), 0)]
        cells = [_of(COLUMNS[name], usual, count) for name, count in digits.items()]
        counted = [_of(COLUMNS["dispatches/token"], usual, 0), _of(COLUMNS["submits/token"], usual, 2)]
        rows.append([title, *speeds, *cells, ", ".join(counted)])
    return _pipe([*head, "device MB", "host MB", "dispatches, submits per token"], rows), H200


def h200_formats() -> tuple[str, Sequence[Results]]:
    """Weight formats side by side on an H200."""
    head = ["Llama-3.2-1B in", "decode, tokens/s", "% of read bandwidth", "GPU ms per token", "MB per token"]
    columns = ((SPEED, 0), (SHARE, 0), (GPU, 3), (COLUMNS["MB/token"], 0))
    variants = [r for r in H200[1].records() if r.settings["variant"]]
    rows = [[f"`{r.settings['variant']}`", *(_of(figure, r, digits) for figure, digits in columns)] for r in variants]
    return _pipe(head, rows), [Results(H200[1].name, ("4f3272c",))]


def h200_together() -> tuple[str, Sequence[Results]]:
    """Several sequences at once on an H200: all new tokens by the time of decoding, and by all the time."""
    sizes = (1, 8, 32, 64)
    rows = []
    for title, records in _named(H200_TOGETHER.records()):
        own = [record for record in records if not record.case.depth]
        by_size = {record.case.batch: record for record in own}
        rows.append([title, *(_of(SPEED, by_size[n], 0) for n in sizes)])
        rows.append(["… with the reading of prompts", *(f"{_whole_speed(by_size[n]):,.0f}" for n in sizes)])
        rows.append(["… GPU ms per token", *(_of(GPU, by_size[n], 2) for n in sizes)])
        if theirs := LLAMA_TOGETHER.get(own[0].model["name"]):
            rows.append(["… llama.cpp with CUDA", *(f"{speed:,}" for speed in theirs)])
    return _pipe(["tokens/s of all together", *map(str, sizes)], rows), [H200_TOGETHER]


def _whole_speed(record: Record) -> float:
    """New tokens of all sequences a second, from submission to the last."""
    return record.case.batch * record.case.new_tokens / median(sample.total_s for sample in record.samples)


def h200_serving() -> tuple[str, Sequence[Results]]:
    """The server on an H200, for several numbers of clients."""
    sizes, lines, rows = (1, 8, 32, 64), H200_SERVING.lines(), []
    for name, title in MODELS.items():
        by_size = {line["clients"]: line for line in lines if line["model"] == name}
        if not by_size:
            continue
        own = [by_size[n] for n in sizes]
        rows.append([f"{title}, tokens/s", *(f"{line['tokens_per_s']:,.0f}" for line in own)])
        rows.append(["… over those of the engine alone", *(f"{line['ratio']:.2f}" for line in own)])
        rows.append(["… first token, ms: median (p99)", *(_median_and_p99(line, "first") for line in own)])
        rows.append(["… between events, ms: median (p99)", *(_median_and_p99(line, "gap") for line in own)])
    return _pipe(["clients", *map(str, sizes)], rows), [H200_SERVING]


def _median_and_p99(line: dict[str, Any], what: str) -> str:
    return f"{line[f'{what}_p50_ms']:,.0f} ({line[f'{what}_p99_ms']:,.0f})"


def zen5() -> tuple[str, Sequence[Results]]:
    """Every model on two cores of Zen 5."""
    head = ["model", "prefill of 128, ms", "decode, tokens/s", "ms per token, p50", "p99", "MB per token"]
    rows = []
    for title, (record,) in _named(ZEN5.records()):
        speeds = [_with_spread(tables.prefill_ms, record, 1), _with_spread(SPEED, record, 1)]
        times = [_of(COLUMNS["ms/token p50"], record, 3), _of(COLUMNS["p99"], record, 3)]
        bandwidth = [_of(COLUMNS["MB/token"], record, 1), _of(SHARE, record, 0)]
        rows.append([title, *speeds, *times, *bandwidth, f"{median(record.read_bandwidth) / 1e9:.1f}"])
    return _pipe([*head, "% of read bandwidth", "GB/s readable"], rows), [ZEN5]


def zen5_memory() -> tuple[str, Sequence[Results]]:
    """Loading, host time and memory on two cores of Zen 5."""
    names = {"load s": 2, "host ms/token": 3, "host MB": 0}
    rows = [
        [title, *(_of(COLUMNS[name], record, digits) for name, digits in names.items())]
        for title, (record,) in _named(ZEN5.records())
    ]
    return _pipe(["model", "load s", "host ms per token", "host MB"], rows), [ZEN5]


def _peers(source: Results, model: str) -> tuple[str, Sequence[Results]]:
    """Engines beside each other: median, lowest and highest of the repetitions."""
    lines = [line for line in source.lines() if line["model"]["name"] == model and not line["error"]]
    rows = []
    for peer in dict.fromkeys(line["peer"] for line in lines):
        rows.append([PEERS[peer].title, *(_range(_task(lines, peer, task)) for task in TASKS)])
    own = [_task(lines, HALFBYTE, task) for task in TASKS[2:]]
    rows.append(["Halfbyte's share of the read bandwidth", "", "", *(_bandwidth(line) for line in own)])
    return _pipe(["tokens/s", "prefill of 256", "prefill of 1,024", "decode", "decode after 4,096"], rows), [source]


def _task(lines: Sequence[dict[str, Any]], peer: str, task: tuple[str, int]) -> dict[str, Any]:
    (found,) = (o for o in lines if o["peer"] == peer and (o["task"]["kind"], o["task"]["size"]) == task)
    return found


def _speeds(line: dict[str, Any]) -> list[float]:
    task = line["task"]
    tokens = task["size"] if task["kind"] == "prefill" else task["steps"]
    return [tokens / seconds for seconds in line["seconds"]]


def _range(line: dict[str, Any]) -> str:
    speeds = _speeds(line)
    return f"{_number(median(speeds))} ({_number(min(speeds))} – {_number(max(speeds))})"


def _bandwidth(line: dict[str, Any]) -> str:
    return f"{line['share']:.0%} of {median(line['bandwidth']) / 1e9:.1f} GB/s"


def pocket_quality() -> tuple[str, Sequence[Results]]:
    """What packing cost the pocket model, from its own manifest."""
    manifest = json.loads(POCKET.read_text(encoding="utf-8"))
    divergence, answers = manifest["quality"]["divergence"], manifest["quality"]["answers"]
    bits, ratio = f"{manifest['bits_per_weight']:.3f}", f"{divergence['ppl_ratio']:.4f}"
    kl = [f"{divergence['kl_mean']:.4f}", f"{divergence['kl_p99']:.3f}", f"{divergence['top1']:.1%}"]
    perplexity = f"{divergence['ppl']:.3f} (bf16: {divergence['ppl_base']:.3f})"
    kept = f"{answers['kept']} of {answers['base_right']}"
    head = ["", "bits per weight", "KL mean", "KL p99", "same top token", "perplexity", "ratio", "right answers kept"]
    return _pipe(head, [["pocket model", bits, *kl, perplexity, ratio, kept]]), []


def headline() -> tuple[str, Sequence[Results]]:
    """Halfbyte beside llama.cpp: what a newcomer wants to know first."""
    lines = [line for line in ZEN5_PEERS.lines() if line["model"]["name"] == "llama-3.2-1b"]
    titles = ("prefill of 256", "prefill of 1,024", "decode", "decode after 4,096 tokens")
    rows = []
    for title, task in zip(titles, TASKS, strict=True):
        both = [_number(median(_speeds(_task(lines, peer, task)))) for peer in (HALFBYTE, "llama.cpp")]
        rows.append([f"two CPU cores (Zen 5), Llama-3.2-1B, {title}", *both])
    own = {title: records for title, _, records in _h200()}
    for name, (decode, _, prefill) in LLAMA_BENCH.items():
        records = own[MODELS[name]]
        rows.append([f"NVIDIA H200, {MODELS[name]}, decode", _of(SPEED, _case(records), 0), f"{decode:,}"])
        if name == "phi-4-mini":
            speed = _of(_prefill_speed, _case(records, prompt=2048), 0)
            rows.append([f"NVIDIA H200, {MODELS[name]}, prefill of 2,048", speed, f"{prefill:,}"])
    return _pipe(["tokens/s, one conversation", "Halfbyte", "llama.cpp"], rows), []


def h200_llama_cpp() -> tuple[str, Sequence[Results]]:
    """Halfbyte beside llama.cpp with CUDA on an H200."""
    head = [
        f"{case}, {engine}" for case in ("decode", "prefill of 512", "of 2,048") for engine in ("Halfbyte", "llama.cpp")
    ]
    own = {title: records for title, _, records in _h200()}
    rows = []
    for name, others in LLAMA_BENCH.items():
        records = own[MODELS[name]]
        usual, longer = _case(records), _case(records, prompt=2048)
        ours = [_of(SPEED, usual, 0), _of(_prefill_speed, usual, 0), _of(_prefill_speed, longer, 0)]
        pairs = zip(ours, others, strict=True)
        rows.append([MODELS[name], *(cell for mine, other in pairs for cell in (mine, f"{other:,}"))])
    return _pipe(["tokens/s", *head], rows), []


TABLES: dict[str, Callable[[], tuple[str, Sequence[Results]]]] = {
    "headline": headline,
    "h200-decode": h200_decode,
    "h200-prefill": h200_prefill,
    "h200-formats": h200_formats,
    "h200-llama-cpp": h200_llama_cpp,
    "h200-together": h200_together,
    "h200-serving": h200_serving,
    "zen5": zen5,
    "zen5-memory": zen5_memory,
    "peers-llama": lambda: _peers(ZEN5_PEERS, "llama-3.2-1b"),
    "peers-gemma": lambda: _peers(ZEN5_PEERS, "gemma-3-1b"),
    "peers-zen4": lambda: _peers(ZEN4_PEERS, "llama-3.2-1b"),
    "pocket-quality": pocket_quality,
}
"""Each table by its name in the pages: its text, and the files it comes from."""


if __name__ == "__main__":
    main()
