"""CPU kernels in the shapes of real models: right first, then how near to the machine's limits.

    python -m benchmarks.kernels_cpu products                         every product × format of Llama-3.2-1B's shapes
    python -m benchmarks.kernels_cpu products --models all --formats q4g32 --threads 2
    python -m benchmarks.kernels_cpu steps --models phi-4-mini        a whole model, time by kind of step

`products` runs each matrix product of a layer, and the output matrix, over as many copies of its weights as do not
fit the caches, so that they come from memory as in use. Its error against the NumPy oracle comes first: a product
that is wrong is not timed. For one token the limit is the read bandwidth measured in the same run, for many it is
NumPy's own float32 product (integer kernels may be beyond it).

`steps` takes a whole model's plan, with random weights, and adds up the times of its steps: decode at a context, and
prefill. Figures are medians; JSON lines go to --output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.products import Product, RandomWeights, batch, error, product_plan, products
from halfbyte.cpu import CpuExecutor, machine
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import get_format
from halfbyte.models.catalog import CATALOG, catalog_spec
from halfbyte.plan import Plan, make_plan, ops

SCHEMA = 1
FORMATS = (
    *("q3g32", "q3g128z", "q4g32", "q4g32z", "q4g64", "q4g128", "q4g128z", "q8g32", "q8g128"),
    *("q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "f16", "bf16", "f32"),
)
OUT_OF_CACHE = 128 << 20
"""Bytes of weights that one run goes through at least, so that none is in a cache when its turn comes again."""

MOST_COPIES = 64
LARGEST_ERROR = 0.02
"""‖out - oracle‖ / ‖oracle‖ that activations rounded to 8 bits may cause; float kernels stay far below."""

BLAS_REST_SECONDS = 0.1
"""Threads of the NumPy product that is the check stay awake for tens of milliseconds, on the cores to be timed."""

_BLAS = """
import time, numpy as np
a, best = np.ones((1024, 1024), np.float32), 1e9
for _ in range(8):
    start = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - start)
print(2 * 1024**3 / best)
"""


@dataclass
class Timing:
    """One product, or the reason why it has no time.

    Attributes:
        seconds: Of one copy, for each repetition.
        nbytes: Of one copy's weights as stored.
        flops: Of one copy for its tokens.
        limit: Bytes a second (one token) or float operations a second (many) that the machine was measured to do.
    """

    model: str
    product: str
    rows: int
    columns: int
    format: str
    tokens: int
    threads: int
    isa: str = ""
    copies: int = 0
    nbytes: int = 0
    flops: int = 0
    limit: float = 0.0
    error: float | None = None
    seconds: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def rate(self) -> float:
        """Bytes a second for one token, float operations a second for more."""
        return (self.nbytes if self.tokens == 1 else self.flops) / median(self.seconds)


def time_product(timing: Timing, product: Product, args: argparse.Namespace) -> None:
    """Check a product, then time it."""
    stored = get_format(timing.format)
    timing.nbytes = sum(stored.nbytes(shape) for shape in product.weights(0).values())
    timing.flops = 2 * product.rows * product.columns * timing.tokens
    timing.copies = min(MOST_COPIES, -(-args.out_of_cache // timing.nbytes)) if timing.tokens == 1 else 1
    plan, weights = product_plan(product, timing.tokens, timing.copies, timing.format)
    try:
        executor = CpuExecutor(plan, weights, threads=timing.threads, isa=args.isa)
    except UnsupportedModelError as refused:
        timing.failure = refused.message
        return
    timing.isa = executor.isa
    given = batch(plan, 0, timing.tokens, np.arange(timing.tokens, dtype=np.int32))
    timing.error = error(product, plan, weights, executor.run(given))
    if not timing.error <= LARGEST_ERROR:
        timing.failure = f"wrong: {timing.error:.1e} from the oracle"
        return
    time.sleep(BLAS_REST_SECONDS)
    for _ in range(args.repeat):
        executor.run(given)
        timing.seconds.append(float(executor.step_ns()[2:-1].sum()) / timing.copies / 1e9)


def limit(threads: int, tokens: int) -> float:
    """Bytes a second that threads read together, for one token; NumPy's float32 operations a second, for more."""
    if tokens == 1:
        return machine.read_bandwidth(threads)
    variables = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    done = subprocess.run([sys.executable, "-c", _BLAS], env=os.environ | variables, capture_output=True, check=True)
    return float(done.stdout)


def run_products(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every product asked for, a line of the table each."""
    wrong = False
    for tokens in args.tokens:
        unit = "GB/s" if tokens == 1 else "GFLOP/s"
        print(f"\n{tokens} token{'s' if tokens > 1 else ''}")
        names = f"{'model':<14}{'product':<9}{'matrix':>14}  {'format':<8}{'threads':>7}"
        print(f"{names}{'error':>10}{'µs':>11}{unit:>9}{'limit':>9}{'share':>7}")
        for threads in args.threads:
            ceiling = limit(threads, tokens)
            for model, product, form in _cases(args, tokens):
                timing = Timing(
                    model, product.name, product.rows, product.columns, form, tokens, threads, limit=ceiling
                )
                time_product(timing, product, args)
                wrong |= timing.error is not None and not timing.seconds
                print(_line(timing), flush=True)
                yield {**asdict(timing), "benchmark": "kernels_cpu products"}
    if wrong:
        sys.exit("a kernel disagrees with the oracle")


def _cases(args: argparse.Namespace, tokens: int) -> Iterator[tuple[str, Product, str]]:
    """Models, products and formats asked for; the output matrix only ever sees one token."""
    for model in args.models:
        for product in products(catalog_spec(model)):
            if product.name in args.products and (tokens == 1 or product.name != "head"):
                yield from ((model, product, form) for form in args.formats)


def _line(timing: Timing) -> str:
    shape = f"{timing.rows}×{timing.columns}"
    head = f"{timing.model:<14}{timing.product:<9}{shape:>14}  {timing.format:<8}{timing.threads:>7}"
    if timing.failure:
        return f"{head}  {timing.failure}"
    each = median(timing.seconds) * 1e6
    share = timing.rate / timing.limit
    return f"{head}{timing.error:>10.1e}{each:>11.1f}{timing.rate / 1e9:>9.1f}{timing.limit / 1e9:>9.1f}{share:>7.0%}"


def run_steps(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whole models: time by kind of step, at decode and at prefill."""
    for name in args.models:
        spec = catalog_spec(name, layers=args.layers)
        for form in args.formats:
            weights = RandomWeights(spec.shapes, form)
            many = max(args.tokens)
            plan = make_plan(spec, weights.format, tokens=many, rows=1, context=max(args.context, many) + 1)
            for threads in args.threads:
                executor = CpuExecutor(plan, weights, threads=threads, isa=args.isa)
                for tokens in args.tokens:
                    yield _steps_of(executor, name, form, tokens, args)


def _steps_of(executor: CpuExecutor, name: str, form: str, tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds by kind of step: of one token after `--context` others, or of several from an empty cache."""
    plan = executor.plan
    last = np.array([tokens - 1], np.int32)
    start = args.context if tokens == 1 else 0
    for position in range(0, start, plan.tokens):
        executor.run(batch(plan, position, min(plan.tokens, start - position), np.array([], np.int32)))
    samples = []
    for _ in range(args.repeat + 1):
        executor.run(batch(plan, start, tokens, last))
        samples.append(executor.step_ns())
    times = np.median(np.array(samples[1:]), axis=0) / 1e6
    kinds: dict[str, list[float]] = defaultdict(list)
    for step, ms in zip(plan.steps, times, strict=True):
        kinds[_kind(plan, step)].append(float(ms))
    where = f"decode at {start:,}" if tokens == 1 else f"prefill of {tokens:,}"
    print(f"\n{name}, {form}, {where}, {executor.threads} threads, {executor.isa}: {times.sum():.2f} ms")
    for kind, each in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        print(f"  {kind:<28} ×{len(each):<4}{sum(each):>10.3f} ms{sum(each) / times.sum():>7.0%}", flush=True)
    return {
        "benchmark": "kernels_cpu steps",
        "model": name,
        "layers": len(plan.of_kind("cache")) // 2,
        "format": form,
        "tokens": tokens,
        "context": start,
        "threads": executor.threads,
        "isa": executor.isa,
        "ms": {kind: sum(each) for kind, each in kinds.items()},
        "count": {kind: len(each) for kind, each in kinds.items()},
    }


def _kind(plan: Plan, step: ops.Op) -> str:
    """A step's op, with the shape of its matrix where it has one."""
    if isinstance(step, ops.Linear | ops.GatedLinear):
        shapes = [plan.tensors[name].shape for name in step.weights]
        return f"{type(step).__name__} {sum(shape[0] for shape in shapes)}×{shapes[0][1]}"
    return type(step).__name__


def _arguments() -> argparse.Namespace:
    names = ("qkv", "o", "gate_up", "down", "head")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("products", "steps"))
    parser.add_argument("--models", nargs="+", default=["llama-3.2-1b"], choices=[*CATALOG, "all"])
    parser.add_argument("--formats", nargs="+", help="weight formats; all for products, q4g32 for steps")
    parser.add_argument("--products", nargs="+", default=names, choices=names)
    parser.add_argument(
        "--tokens", nargs="+", type=int, default=[1, 256], help="1 is decode, more is prefill; default 1 256"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, machine.default_threads()}))
    parser.add_argument("--isa", help="instruction set; the best one if not given")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument(
        "--out-of-cache", type=int, default=OUT_OF_CACHE, help="bytes a run goes through; default %(default)s"
    )
    parser.add_argument("--layers", type=int, help="fewer layers than the model has, for steps")
    parser.add_argument("--context", type=int, default=512, help="tokens before the one decoded, for steps")
    parser.add_argument("--output", type=Path, help="a file to add JSON lines to")
    args = parser.parse_args()
    args.models = list(CATALOG) if "all" in args.models else args.models
    args.formats = args.formats or (FORMATS if args.what == "products" else ("q4g32",))
    return args


def main() -> None:
    """Run what is asked, and keep every result as soon as it is there."""
    args = _arguments()
    described = machine.describe()
    print(f"{described.brand}, {', '.join(described.instruction_sets)}")
    about = {"schema": SCHEMA, "machine": described.brand, "cores": described.cores}
    for row in (run_products if args.what == "products" else run_steps)(args):
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps({**about, **row}) + "\n")


if __name__ == "__main__":
    main()
