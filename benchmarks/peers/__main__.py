"""Halfbyte beside other engines on this machine, on identical weights.

    python -m benchmarks.peers                                   everything; the first time it installs the peers
    python -m benchmarks.peers --quick --peers llama.cpp         two layers, short contexts: does it all run?
    python -m benchmarks.peers --model phi-4-mini --threads 2
    python -m benchmarks.peers --batched-bench PATH              batches on the GPU, beside llama.cpp's own program

Run it from the repository's root with a Python that has Halfbyte. Environments, models and logs are kept under
.cache/peers; JSON lines are added to benchmarks/results/MACHINE/peers-DATE.jsonl.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import measure, report
from benchmarks.peers.batched_bench import BatchedBench
from benchmarks.peers.catalog import HALFBYTE, LLAMA_CPP, PEERS
from benchmarks.peers.environment import ROOT, PeerError, python_of
from benchmarks.peers.measure import Agreement, Measurement, Task
from benchmarks.peers.models import SyntheticModel
from benchmarks.peers.remote import Remote
from halfbyte.cpu import machine
from halfbyte.models.catalog import CATALOG

RESULTS = ROOT / "benchmarks" / "results"
Files = dict[str, tuple[str, Path]]
"""The interpreter and the files of each peer that is ready."""

About = dict[str, dict[str, Any]]
"""Versions and settings of each peer that ran."""

QUICK = {
    "layers": 2, "vocabulary": 32_768, "repeat": 2, "prefill": [64], "contexts": [0, 128], "steps": 8,
    "sequences": [2], "batch_prompt": 16, "batch_steps": 4,
}  # fmt: skip


def main() -> None:
    """Prepare, check and time; lines are kept as they come, the table is printed at the end."""
    args = _arguments()
    model = SyntheticModel(args.model, args.layers, args.vocabulary)
    described, now = machine.describe(), datetime.now(UTC)
    path = args.output or RESULTS / _machine_name(described) / f"peers-{now:%Y-%m-%d}.jsonl"
    rows: list[Measurement] = []
    for found, about in _on_gpu(model, args) if args.batched_bench else _on_cpu(model, args):
        lines = report.records(
            found,
            time=now.isoformat(timespec="seconds"),
            machine=asdict(described),
            model={
                "name": args.model,
                "layers": len(model.spec.layers),
                "vocabulary": model.spec.vocab_size,
                "weights": "q4g32",
            },
            about=about,
        )
        report.append(path, lines)
        print(f"{len(lines)} lines added to {path}", file=sys.stderr)
        rows += found
    print(report.table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CATALOG, default="llama-3.2-1b", help="whose shape; default %(default)s")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--vocabulary", type=int, help="another vocabulary, at least the pocket model's 8,192")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="all, if not given")
    parser.add_argument(
        "--threads", nargs="+", type=int, help="thread counts; 1 and what Halfbyte would use, if not given"
    )
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; default %(default)s")
    parser.add_argument("--prefill", nargs="*", type=int, default=[256, 1024], help="prompt lengths; default 256 1024")
    parser.add_argument(
        "--contexts", nargs="*", type=int, default=[0, 512, 4096], help="for decode; default 0 512 4096"
    )
    parser.add_argument("--steps", type=int, default=32, help="tokens that a repetition decodes; default %(default)s")
    parser.add_argument(
        "--sequences", nargs="*", type=int, default=[1, 8], help="prompts answered together in a batch; default 1 8"
    )
    parser.add_argument("--batch-prompt", type=int, default=128, help="tokens of each of them; default %(default)s")
    parser.add_argument("--batch-steps", type=int, default=64, help="new tokens after each; default %(default)s")
    parser.add_argument(
        "--batched-bench",
        type=Path,
        metavar="PATH",
        help="a llama-batched-bench that was built for the GPU: measure batches on the GPU, nothing on the CPU",
    )
    parser.add_argument("--quick", action="store_true", help="small settings, to see whether everything runs")
    parser.add_argument("--output", type=Path, help="the file to add JSON lines to")
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    if args.batched_bench and not args.sequences:
        parser.error("--batched-bench needs --sequences")
    args.peers = [HALFBYTE, *(name for name in args.peers if name != HALFBYTE)]
    args.threads = args.threads or sorted({1, machine.default_threads()})
    return args


def _single(args: argparse.Namespace) -> list[Task]:
    """Tasks of one sequence."""
    prefills = [Task("prefill", size) for size in args.prefill]
    return prefills + [Task("decode", context, args.steps) for context in args.contexts]


def _batches(args: argparse.Namespace) -> list[Task]:
    return [Task("batch", args.batch_prompt, args.batch_steps, sequences) for sequences in args.sequences]


def _on_cpu(model: SyntheticModel, args: argparse.Namespace) -> Iterator[tuple[list[Measurement], About]]:
    """Everything, for each number of threads; for batches, engines are loaded again, with room for all sequences."""
    failures: dict[str, str] = {}
    ready = _prepare(model, args.peers, failures)
    single, batches = _single(args), _batches(args)
    batched = [{name: each for name, each in of.items() if PEERS[name].batched} for of in (ready, failures)]
    for threads in args.threads:
        if single:
            yield _run(model, ready, threads, single, args.repeat, failures)
        if batches:
            yield _run(model, batched[0], threads, batches, args.repeat, batched[1])


def _on_gpu(model: SyntheticModel, args: argparse.Namespace) -> Iterator[tuple[list[Measurement], About]]:
    """Batches by Halfbyte and by llama.cpp's own program."""
    tasks = _batches(args)
    context, sequences = max(task.context for task in tasks), max(task.sequences for task in tasks)
    log = model.folder / "halfbyte_gpu.log"
    try:
        theirs = BatchedBench(args.batched_bench, model.source("gguf"))
        ours = Remote(sys.executable, "halfbyte_gpu", model.source("halfbyte"), 1, context, log, sequences=sequences)
    except PeerError as error:
        sys.exit(str(error))
    with ours:
        peers = {HALFBYTE: ours, LLAMA_CPP: theirs}
        for task in tasks:
            blank = partial(Measurement, threads=1, task=task, device="gpu")
            rows = measure.time_task(peers, blank, task, args.repeat, model.spec.vocab_size, None)
            yield rows, {name: _about(peer) for name, peer in peers.items()}


def _about(peer: Remote | BatchedBench) -> dict[str, Any]:
    return {"versions": peer.versions, "settings": dict(peer.settings)}


def _prepare(model: SyntheticModel, names: list[str], failures: dict[str, str]) -> Files:
    """Install each peer and make its files; who cannot be helped goes to `failures`."""
    ready: Files = {}
    for name in names:
        try:
            python = python_of(PEERS[name])
            print(f"{PEERS[name].title}: making its files", file=sys.stderr)
            ready[name] = python, model.files(PEERS[name], python)
        except PeerError as error:
            failures[name] = str(error)
    return ready


def _run(
    model: SyntheticModel, ready: Files, threads: int, tasks: list[Task], repeat: int, failures: dict[str, str]
) -> tuple[list[Measurement], About]:
    """All tasks with one number of threads; engines that fail are rows with the reason."""
    context = max(measure.PROMPT_TOKENS + 1, *(task.context for task in tasks))
    sequences = max(task.sequences for task in tasks)
    failed = dict(failures)
    with ExitStack() as stack:
        remotes: dict[str, Remote] = {}
        for name, (python, files) in ready.items():
            engine = PEERS[name].engine
            log = model.folder / f"{engine}-{threads}.log"
            try:
                remote = Remote(python, engine, files, threads, context, log, sequences=sequences)
                remotes[name] = stack.enter_context(remote)
            except PeerError as error:
                failed[name] = str(error)
        agreed: dict[str, Agreement] = {}
        for name, found in _agreements(model, remotes, failed).items():
            if isinstance(found, Agreement):
                agreed[name] = found
            else:
                failed[name] = str(found)
        timed = {name: remotes[name] for name in agreed}
        rows = [row for task in tasks for row in _rows(model, timed, task, threads, repeat, agreed, failed)]
        return rows, {name: _about(remote) for name, remote in remotes.items()}


def _agreements(
    model: SyntheticModel, remotes: dict[str, Remote], failed: dict[str, str]
) -> dict[str, Agreement | PeerError]:
    """Who computes what Halfbyte does; without Halfbyte there is nothing to compare."""
    try:
        if HALFBYTE in remotes:
            return measure.agreements(remotes, model.spec.vocab_size)
        why = failed[HALFBYTE]
    except PeerError as error:
        why = str(error)
    sys.exit(f"Halfbyte does not run: {why}")


def _rows(
    model: SyntheticModel,
    remotes: dict[str, Remote],
    task: Task,
    threads: int,
    repeat: int,
    agreed: dict[str, Agreement],
    failed: dict[str, str],
) -> list[Measurement]:
    spec = model.spec

    def blank(name: str) -> Measurement:
        read = measure.decode_bytes(spec, PEERS[name], task) if task.kind == "decode" else None
        return Measurement(name, threads, task, bytes_read=read, agreement=agreed.get(name), error=failed.get(name))

    bandwidth = partial(machine.read_bandwidth, threads)
    rows = measure.time_task(remotes, blank, task, repeat, spec.vocab_size, bandwidth)
    return rows + [blank(name) for name in failed]


def _machine_name(described: machine.Machine) -> str:
    """A name for the folder of this machine's results."""
    brand = re.sub(r"[^a-z0-9]+", "-", described.brand.lower()).strip("-")
    return f"{brand}-{described.cores}-cores"


if __name__ == "__main__":
    main()
