"""GGUF files between Halfbyte and llama.cpp, both ways: what the interchange is worth, measured by hand.

    pip install llama-cpp-python==0.3.36          # builds from source: minutes
    python benchmarks/peers/llama_cpp_files.py ../shared/models/shell-29m --text ../shared/data/books-dev.txt

For each kind of file, written by Halfbyte and by llama.cpp's own quantizer: the mean KL divergence of Halfbyte's
logits from llama.cpp's on the same file; the same with llama.cpp computing in float32 on the weights it decoded
itself, which leaves out that it rounds activations to 8 bits; whether both choose the same type for each tensor; and
whether both tokenize alike. The last column is the root mean squared error of Halfbyte's matrices over llama.cpp's.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.folder import Checkpoint
from halfbyte.checkpoint.foreign import Runnable
from halfbyte.checkpoint.gguf import GgufFile
from halfbyte.checkpoint.gguf_model import open_gguf
from halfbyte.checkpoint.gguf_writer import write_gguf
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec
from halfbyte.plan import Batch, make_plan
from halfbyte.reference import ReferenceExecutor
from halfbyte.text import Tokenizer
from halfbyte.text.files import read_tokenizer_files

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""llama.cpp's numbers (`llama_ftype`) of the kinds that both write."""

FLOAT32 = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a bf16, f16 or f32 checkpoint")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.model)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    text = options.text.read_text(encoding="utf-8")[: 8 * options.tokens]
    print("| kind | written by | KL | KL, float32 | same types | same tokens | error |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.model, checkpoint, spec, text, options.tokens)


def compare(folder: Path, model: Path, checkpoint: Checkpoint, spec: ModelSpec, text: str, count: int) -> None:
    """Print a row for each kind and writer."""
    files = read_tokenizer_files(model)
    ids = Tokenizer(files).encode(text)[:count]
    for kind in FILE_TYPES:
        ours, theirs = folder / f"ours-{kind}.gguf", folder / f"theirs-{kind}.gguf"
        write_gguf(ours, checkpoint, spec, files, kind=kind)
        quantize(folder / "ours-f16.gguf", theirs, FILE_TYPES[kind])
        kinds = [{n: e.format.name for n, e in GgufFile(path).entries.items()} for path in (ours, theirs)]
        ratio = error(ours, checkpoint) / error(theirs, checkpoint)
        for path, writer in ((ours, "Halfbyte"), (theirs, "llama.cpp")):
            here = halfbyte_logits(path, ids)
            there, tokens = llama_cpp_logits(path, ids, text)
            quantize(path, folder / "float32.gguf", FLOAT32)
            exact, _ = llama_cpp_logits(folder / "float32.gguf", ids, text)
            same = tokens == Tokenizer(open_gguf(path).tokenizer_files()).encode(text, add_special_tokens=False)
            figures = f"{divergence(there, here):.6f} | {divergence(exact, here):.6f}"
            print(f"| {kind} | {writer} | {figures} | {kinds[0] == kinds[1]} | {same} | {ratio:.4f} |", flush=True)


def quantize(source: Path, target: Path, file_type: int) -> None:
    """llama.cpp's own quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = file_type, True, 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot quantize {source}")


def error(path: Path, checkpoint: Checkpoint) -> float:
    """Root mean squared error of a file's matrices."""
    packed = open_gguf(path)
    matrices = [name for name, shape in packed.shapes.items() if len(shape) == 2]
    squares = [np.sum((packed.weight(n).decode() - checkpoint.weight(n).decode()) ** 2) for n in matrices]
    return float(np.sqrt(sum(squares) / sum(np.prod(packed.shapes[name]) for name in matrices)))


def halfbyte_logits(path: Path, ids: list[int]) -> np.ndarray:
    """Logits of every position by the NumPy executor."""
    checkpoint = open_gguf(path)
    source = Runnable(checkpoint)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    count = len(ids)
    plan = make_plan(spec, source.format, rows=count, tokens=count, kv_dtype="f32", context=2 * count)
    tables = {
        g.blocks: np.arange(plan.sequences * g.columns, dtype=np.int32).reshape(plan.sequences, -1) for g in plan.groups
    }
    positions = np.arange(count, dtype=np.int32)
    zeros = np.zeros(count, np.int32)
    batch = Batch(np.array(ids, np.int32), positions, zeros, zeros, tables, positions)
    return ReferenceExecutor(plan, source).run(batch).copy()


def llama_cpp_logits(path: Path, ids: list[int], text: str) -> tuple[np.ndarray, list[int]]:
    """Logits of every position, and the tokens of a text."""
    model = llama_cpp.Llama(
        str(path), n_ctx=2 * len(ids), n_batch=len(ids), logits_all=True, verbose=False, n_threads=2
    )
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    tokens = model.tokenize(text.encode(), add_bos=False, special=True)
    model.close()
    return logits, tokens


def divergence(base: np.ndarray, other: np.ndarray) -> float:
    """Mean KL divergence of two models' next-token distributions."""
    shifted = [x.astype(np.float64) - x.max(axis=-1, keepdims=True) for x in (base, other)]
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in shifted)
    return float(np.mean((np.exp(p) * (p - q)).sum(axis=-1)))


if __name__ == "__main__":
    main()
