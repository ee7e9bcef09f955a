"""GGUF files between Halfbyte and llama.cpp, both ways, with llama.cpp itself (pinned, from cyllama's wheel).

llama.cpp rounds activations to 8 bits before it multiplies them with packed weights: in blocks of 32 values for its
old formats, of 256 for k-quants, which alone moves its logits by a KL of 0.002. So there are two comparisons. The
strict one is with llama.cpp computing in float32 on weights that it decoded itself. The other is with llama.cpp as it
is, and there Halfbyte must be as near as llama.cpp in float32 is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.gguf.file import GgufFile
from halfbyte.checkpoint.gguf.model import open_gguf
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.models.spec import ModelSpec
from halfbyte.text import Tokenizer
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files
from tests.models import llama_cpp
from tests.models.test_interchange import IDS, IN_GGUF, divergence, logits, small_tokenizer, spec_of
from tests.models.tiny import tiny

AGREE = 0.001
"""Mean KL divergence of two programs' logits on one file, at most."""

WRITTEN = ("f16", "q8_0", "q4_0", "q4_1", "q4_k_m", "q5_k_m", "q6_k")
READ = ("bf16", "q5_0", "q5_1", "q2_k", "q3_k_m", "iq4_nl", "iq4_xs")
BLOCKS_OF_256 = ("q4_k_m", "q5_k_m", "q6_k", "q2_k", "q3_k_m", "iq4_xs")
TOKENS = 64

Model = tuple[Checkpoint, ModelSpec, TokenizerFiles]


@pytest.fixture(scope="module")
def shell(shell_29m: Path) -> Model:
    checkpoint = open_checkpoint(shell_29m)
    return checkpoint, spec_of(checkpoint), read_tokenizer_files(shell_29m)


@pytest.fixture(scope="module")
def text(shared: Path) -> str:
    return (shared / "data" / "books-dev.txt").read_text(encoding="utf-8")[:2000]


@pytest.fixture(scope="module")
def ids(shell: Model, text: str) -> list[int]:
    return Tokenizer(shell[2]).encode(text)[:TOKENS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shell: Model) -> Path:
    """The model as Halfbyte writes it in f16, for llama.cpp's quantizer to start from."""
    source, spec, tokenizer = shell
    path = tmp_path_factory.mktemp("whole") / "f16.gguf"
    write_gguf(path, source, spec, tokenizer, kind="f16")
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, shell: Model) -> Path:
    """The same with two of its layers: enough for formats that are only read."""
    source, spec, tokenizer = shell
    path = tmp_path_factory.mktemp("short") / "f16.gguf"
    left_out = tuple(f"model.layers.{index}." for index in range(2, len(spec.layers)))
    shapes = {name: shape for name, shape in spec.shapes.items() if not name.startswith(left_out)}
    write_gguf(path, source, replace(spec, layers=spec.layers[:2], shapes=shapes), tokenizer, kind="f16")
    return path


def check_agreement(path: Path, kind: str, ids: list[int]) -> None:
    """Halfbyte's logits for a file, as it runs it, are llama.cpp's."""
    checkpoint = open_gguf(path)
    here = logits(ExecutableWeights(checkpoint), spec_of(checkpoint), ids, context=256)
    there = llama_cpp.logits(path, ids)
    unpacked = path.with_name(f"{path.stem}-unpacked.gguf")
    llama_cpp.quantize(path, unpacked, "f32")
    exact = llama_cpp.logits(unpacked, ids)
    unpacked.unlink()
    assert divergence(exact, here) < AGREE / 2
    assert divergence(there, here) < (divergence(there, exact) if kind in BLOCKS_OF_256 else AGREE / 2) + AGREE / 2


@pytest.mark.parametrize("kind", WRITTEN)
def test_both_write_files_that_both_read_alike(
    tmp_path: Path, whole: Path, shell: Model, text: str, ids: list[int], kind: str
) -> None:
    source, spec, tokenizer = shell
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write_gguf(ours, source, spec, tokenizer, kind=kind)
    llama_cpp.quantize(whole, theirs, kind)
    for path in (ours, theirs):
        check_agreement(path, kind, ids)
        there = llama_cpp.tokens(path, text)
        assert Tokenizer(open_gguf(path).tokenizer_files()).encode(text, add_special_tokens=False) == there
    formats = [{name: entry.format.name for name, entry in GgufFile(path).entries.items()} for path in (ours, theirs)]
    assert formats[0] == formats[1]
    assert squared_error(ours, source) <= 1.01 * squared_error(theirs, source)


@pytest.mark.parametrize("kind", READ)
def test_what_only_llama_cpp_writes_is_read_alike(tmp_path: Path, short: Path, ids: list[int], kind: str) -> None:
    path = tmp_path / "theirs.gguf"
    llama_cpp.quantize(short, path, kind)
    check_agreement(path, kind, ids)


@pytest.mark.parametrize("family", sorted(set(IN_GGUF) - {"gemma-3-softcap"}))
def test_llama_cpp_runs_every_family_as_halfbyte_wrote_it(tmp_path: Path, family: str) -> None:
    """All but a Gemma whose second layer of two is local: to llama.cpp every sixth is global, whatever a file says.

    It also has no sliding window for Mistral, so the text is no longer than that, and with LongRoPE it takes the long
    factors for all of a context that may become long.
    """
    model = tiny(family)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, model.spec, small_tokenizer(), kind="stored")
    attention = model.spec.attentions[0]
    some = IDS[: attention.window] if model.spec.model_type == "mistral" else IDS
    last = len(model.spec.ropes[attention.rope].inv_freq()) - 1
    assert divergence(logits(model, model.spec, some, last), llama_cpp.logits(path, some)) < AGREE / 100


def squared_error(path: Path, source: Checkpoint) -> float:
    """Of all matrices of a file together."""
    packed = open_gguf(path)
    matrices = [name for name, shape in packed.shapes.items() if len(shape) == 2]
    return float(sum(np.sum((packed.weight(n).decode() - source.weight(n).decode()) ** 2) for n in matrices))
