"""What masks of allowed tokens take: python -m benchmarks.masks --tokenizer FOLDER

Random answers under each schema that the tests have, with a tokenizer of any size. For every token, it times the mask
that is made before it and the grammar's step over it. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import numpy as np

from halfbyte.text import Tokenizer
from halfbyte.text.grammar import GrammarCompiler
from tests.unit.json_schemas import schemas

TOKENS = 64
"""Most tokens of one answer."""


def times(compiler: GrammarCompiler, stop: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds until each grammar is compiled, and seconds for each token's mask and step."""
    choose = random.Random(seed)
    compiled, steps = list[float](), list[float]()
    for schema in schemas():
        start = time.perf_counter()
        grammar = compiler.json_schema(schema)
        compiled.append(time.perf_counter() - start)
        constraint = grammar.start()
        for _ in range(TOKENS):
            start = time.perf_counter()
            words = constraint.words()
            made = time.perf_counter() - start
            found = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
            token_id = int(found[choose.randrange(found.size)])
            start = time.perf_counter()
            constraint.accept(token_id)
            steps.append(made + time.perf_counter() - start)
            if token_id == stop:
                break
    return compiled, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    tokenizer = Tokenizer.from_folder(chosen.tokenizer)
    stop = max(tokenizer.special_ids)
    start = time.perf_counter()
    compiler = GrammarCompiler(tokenizer, [stop])
    ready = time.perf_counter() - start
    compiled, steps = times(compiler, stop, chosen.seed)
    figures = {"mean": np.mean(steps), "median": np.median(steps), "p99": np.percentile(steps, 99)}
    told = {
        "vocabulary": tokenizer.vocab_size,
        "compiler_s": round(ready, 2),
        "schemas": len(compiled),
        "compile_ms_median": round(1000 * float(np.median(compiled)), 3),
        "tokens": len(steps),
        **{f"token_us_{name}": round(1e6 * float(value), 1) for name, value in figures.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
