"""GPU kernels in the shapes of real models: time, bytes and share of the measured bandwidth of every kind of dispatch.

    python benchmarks/kernels_gpu.py phi-4-mini llama-3.2-1b     whole models, synthetic weights
    python benchmarks/kernels_gpu.py phi-4-mini --rows 1 8 32    a step of so many sequences that decode together

A kind is all dispatches of one label in a model's program, run back to back over their own weights, so that caches
see what they see in use. Every model's numbers come after a check: its programs for one and for many tokens agree.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from halfbyte.gpu.device.clock import Clock
from halfbyte.gpu.device.device import Device, open_device
from halfbyte.gpu.lowering.lower import SINGLE, body_name, head_name
from halfbyte.gpu.lowering.program import Extent
from halfbyte.gpu.run.bound import BoundProgram
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.tuning.store import remembered_tuning
from halfbyte.models.catalog import catalog_spec
from halfbyte.plan import Batch, Draw, Pending, make_plan
from halfbyte.plan.ops import Attention
from halfbyte.sampling import Sampler, SamplingParams
from halfbyte.synthetic import SyntheticWeights

REPEATS = 5
_WEIGHTS = re.compile(r"(p\d+_)?w(_|$)")


def executor(device: Device, name: str, args: argparse.Namespace) -> GpuExecutor:
    spec = catalog_spec(name, layers=args.layers)
    weights = SyntheticWeights(spec, args.format)
    most = max(args.rows or [1])
    plan = make_plan(
        spec, weights.format, tokens=args.tokens, context=min(spec.context, max(args.contexts) + 512),
        sequences=most, rows=most,
    )  # fmt: skip
    return GpuExecutor(plan, weights, device=device, off=args.off, tuning=remembered_tuning(device))


def batch(run: GpuExecutor, ids: list[int], start: int, logit_rows: list[int]) -> Batch:
    tables = {g.blocks: np.arange(g.columns, dtype=np.int32)[None] for g in run.plan.groups}
    zeros = np.zeros(len(ids), np.int32)
    positions = np.arange(start, start + len(ids), dtype=np.int32)
    return Batch(np.array(ids, np.int32), positions, zeros, zeros, tables, np.array(logit_rows, np.int32))


def prefill(run: GpuExecutor, ids: list[int]) -> np.ndarray:
    for start in range(0, len(ids), run.plan.tokens):
        chunk = ids[start : start + run.plan.tokens]
        final = start + len(chunk) == len(ids)
        logits = run.run(batch(run, chunk, start, [len(chunk) - 1] if final else []))
    return logits


def warm(run: GpuExecutor, seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run.run(batch(run, [1], 0, [0]))


def check(run: GpuExecutor) -> float:
    """Largest difference between the logits of one token after a prompt, computed with and after the prompt."""
    ids = np.random.default_rng(0).integers(0, 1000, 65).tolist()
    together = prefill(run, ids)[0].copy()
    prefill(run, ids[:-1])
    alone = run.run(batch(run, ids[-1:], 64, [0]))[0]
    return float(np.abs(together - alone).max() / np.abs(together).max())


def decode(run: GpuExecutor, context: int, tokens: int, *, each: bool = False) -> float:
    """Tokens a second after a prompt of `context` tokens."""
    together, ahead = (1, 1) if each else (run.most_steps, run.ahead)
    draw, under_way = Draw(0, Sampler(SamplingParams()), (), ()), deque[Pending]()
    began, counted = 0.0, 0
    for sent in range(0, tokens + 8, together):
        new = batch(run, [-1 if sent else 1], context + sent, [0])
        under_way.append(run.submit(replace(new, num_decodes=1), [draw], steps=together))
        if len(under_way) >= ahead:
            counted += len(under_way.popleft().tokens()) if began else 0
            began = began or time.perf_counter()
    counted += sum(len(pending.tokens()) for pending in under_way)
    return counted / (time.perf_counter() - began)


def kinds(program: BoundProgram, extent: Extent) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for command in program.commands(extent):
        found[command.dispatch.label].append((command.dispatch, command))
    return found


def nbytes(dispatches: list[Any]) -> int:
    weights = {id(b): b.handle.size for d in dispatches for n, b in d.buffers.items() if _WEIGHTS.match(n)}
    return sum(weights.values())


def table_of(clock: Clock, program: BoundProgram, extent: Extent) -> Iterator[dict[str, Any]]:
    for label, found in kinds(program, extent).items():
        commands = [command for _, command in found]
        rounds = max(1, 64 // len(commands))
        each = clock.median(commands * rounds) / (len(commands) * rounds)
        moved = nbytes([dispatch for dispatch, _ in found])
        yield {
            "kind": label,
            "count": len(found),
            "us": each * 1e6,
            "total_us": each * len(found) * 1e6,
            "TB/s": moved / len(found) / each / 1e12,
        }


def show(rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"  {row['kind']:<26} ×{row['count']:<4} {row['us']:8.2f} µs  {row['total_us']:9.1f} µs in all"
            f"  {row['TB/s']:5.2f} TB/s",
            flush=True,
        )


def median(values: list[float]) -> float:
    return float(np.median(values))


def host_ms(run: GpuExecutor, extent: Extent) -> float:
    run.device.wait()
    began = time.perf_counter()
    for _ in range(20):
        run.recorder.submit(run.program(SINGLE).commands(extent))
    spent = (time.perf_counter() - began) / 20
    run.device.wait()
    return spent * 1e3


def token_nbytes(run: GpuExecutor, context: int) -> int:
    """Bytes that a token reads: weights, but for the table of embeddings, and the cache of earlier tokens."""
    weights = nbytes([d for d in run.program(SINGLE).dispatches if d.label != "embed"])
    attentions = [step for step in run.plan.steps if isinstance(step, Attention)]
    width = {"f16": 2, "f32": 4}
    return weights + sum(
        2 * a.kv_heads * a.head_dim * min(context, a.window or context) * width[run.plan.tensors[a.k_cache].dtype]
        for a in attentions
    )


def decoding(run: GpuExecutor, clock: Clock, context: int, new: int) -> dict[str, Any]:
    """How fast tokens follow a prompt of `context` tokens."""
    speeds = [decode(run, context, new) for _ in range(REPEATS)]
    each = [decode(run, context, new, each=True) for _ in range(REPEATS)]
    extent = Extent(1, 1, context)
    run.load(batch(run, [1], context - 1, [0]))
    seconds = clock.median(run.program(SINGLE).commands(extent))
    return {
        "tok_s": median(speeds),
        "each_read_tok_s": median(each),
        "gpu_ms": seconds * 1e3,
        "TB/s": token_nbytes(run, context) / seconds / 1e12,
        "host_ms": host_ms(run, extent),
    }


def steps(run: GpuExecutor, clock: Clock, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """How long a step takes in which so many sequences each decode a token, by rows and by context."""
    found: dict[str, dict[str, float]] = {}
    tables = {g.blocks: np.arange(run.plan.sequences * g.columns, dtype=np.int32) for g in run.plan.groups}
    tables = {name: table.reshape(run.plan.sequences, -1) for name, table in tables.items()}
    for context, rows in itertools.product(args.contexts, args.rows):
        each, zeros = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
        run.load(Batch(each, zeros + context - 1, each, zeros, tables, each, rows))
        extent = Extent(rows, rows, context, rows)
        programs = [run.program(name) for name in ([SINGLE] if rows == 1 else [body_name(rows), head_name(rows, rows)])]
        seconds = clock.median([command for program in programs for command in program.commands(extent)])
        found[f"{rows} rows at {context}"] = {"gpu_ms": seconds * 1e3, "tok_s": rows / seconds}
        print(f"  {rows:3d} rows at {context}: {seconds * 1e3:7.3f} ms GPU, {rows / seconds:8.0f} tok/s", flush=True)
        if args.tables:
            for program in programs:
                show(table_of(clock, program, extent))
    return found


def model(device: Device, name: str, args: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    run = executor(device, name, args)
    clock = Clock(device)
    difference = check(run)
    print(f"{name}: loaded in {time.perf_counter() - began:.1f} s, programs differ by {difference:.1e}", flush=True)
    warm(run, 1.0)
    if args.rows:
        result = {"model": name, "steps": steps(run, clock, args), "check": difference}
        print(json.dumps(result), flush=True)
        return result
    ids = np.random.default_rng(1).integers(0, 1000, 2048).tolist()
    prefills: dict[int, list[float]] = {512: [], 2048: []}
    for length, times in prefills.items():
        if length <= run.plan.context:
            for _ in range(REPEATS + 1):
                start = time.perf_counter()
                prefill(run, ids[:length])
                times.append(time.perf_counter() - start)
    result = {
        "model": name,
        "dispatches": len(run.program(SINGLE)),
        "decode": {context: decoding(run, clock, context, args.new) for context in args.contexts},
        "prefill_tok_s": {n: n / median(t[1:]) for n, t in prefills.items() if t},
        "ttft_512_ms": median(prefills[512][1:]) * 1e3,
        "check": difference,
    }
    print(json.dumps(result), flush=True)
    if args.tables:
        extent = Extent(1, 1, args.contexts[0])
        run.load(batch(run, [1], extent.keys - 1, [0]))
        show(table_of(clock, run.program(SINGLE), extent))
        body = run.program("body.many")
        tokens = min(run.plan.tokens, 2048)
        seconds = clock.median(body.commands(Extent(tokens, 1, tokens)), repeats=3)
        print(f"  prefill of {tokens}: {seconds * 1e3:.1f} ms GPU")
        show(table_of(clock, body, Extent(tokens, 1, tokens)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--software", action="store_true", help="take a software GPU")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--format", default="q4g32")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512])
    parser.add_argument("--rows", type=int, nargs="+", help="time a step of so many sequences that decode together")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a prefill chunk")
    parser.add_argument("--off", nargs="*", default=[], help="kernel variants not to use")
    parser.add_argument("--tables", action="store_true", help="a table of every kind of dispatch")
    args = parser.parse_args()
    device = open_device(software=args.software)
    print(device.name, device.adapter.driver, device.capabilities, file=sys.stderr)
    for name in args.models:
        model(device, name, args)


if __name__ == "__main__":
    main()
