"""Peak memory: python -m benchmarks.memory

Loads the pocket model and a synthetic model in the shape of Llama-3.2-1B (random 4-bit weights in groups of 32),
each in a process of its own, answers 32 tokens after a prompt of 256, and compares the process's peak resident
memory with 1.2 × weights + cache + 150 MB. A JSON line each; exit code 1 if one is above.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.synthetic import synthetic_config, write_synthetic

CONTEXT = 1024


def peak_resident_bytes() -> int:
    """The most memory this process had resident, mapped files included.

    Not getrusage: what that says survives exec, so a child starts from its parent's peak.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        sys.exit("this benchmark reads /proc/self/status, which this system does not have")
    return int(found[1]) * 1024


def measure(model: str | None) -> None:
    """Load and answer in this process, and print what it took."""
    import halfbyte

    loaded = halfbyte.load(model, "cpu", context=CONTEXT)
    answer = loaded.generate(list(range(100, 356)), max_tokens=32, ignore_eos=True)
    cache = sum(tensor.nbytes for tensor in loaded.plan.of_kind("cache"))
    peak = peak_resident_bytes()
    limit = 1.2 * loaded.nbytes + cache + 150e6
    row = {"model": loaded.name, "weights_mb": loaded.nbytes / 1e6, "cache_mb": cache / 1e6, "peak_mb": peak / 1e6}
    row |= {"limit_mb": limit / 1e6, "load_s": loaded.load_s, "prefill_ms": answer.prefill_ms}
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}))
    sys.exit(peak > limit)


def both() -> None:
    """Measure both models in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        one_b = Path(folder) / "llama-3.2-1b"
        write_synthetic(one_b, synthetic_config("llama-3.2-1b"))
        command = [sys.executable, "-m", "benchmarks.memory"]
        runs = [subprocess.run([*command, model]).returncode for model in ("pocket", str(one_b))]
    sys.exit(any(runs))


def main() -> None:
    """Measure one model here, or both."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="pocket or a folder, measured in this process; both if not given")
    model = parser.parse_args().model
    if model is None:
        both()
    measure(None if model == "pocket" else model)


if __name__ == "__main__":
    main()
