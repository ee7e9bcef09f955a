"""Files that are damaged in thousands of ways end in a sentence or in an answer, never in another error or a crash.

A small model in each kind of file is changed at random, from fixed seeds, and then opened and run. `scripts/sanitize`
does the same under sanitizers, where a read beyond an array ends the process.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.packed import RepackedWeights
from halfbyte.checkpoint.runnable import ExecutableWeights
from halfbyte.checkpoint.writer import Outgoing, write_folder
from halfbyte.cpu import CpuExecutor, _native
from halfbyte.errors import HalfbyteError
from halfbyte.models import build_spec
from halfbyte.plan import make_plan
from halfbyte.synthetic import batch_of_one
from halfbyte.text.files import TokenizerFiles

CHANGES = 25
NUMBERS = [0, 1, -1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1, 10**30]
HIDDEN, INNER, VOCABULARY = 64, 96, 97
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
}  # fmt: skip


def tokenizer() -> TokenizerFiles:
    """A token for each row of the embedding."""
    vocabulary = {f"t{index}": index for index in range(VOCABULARY)}
    definition = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "added_tokens": [{"id": 2, "content": "t2", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    return TokenizerFiles(Path("tokenizer.json"), json.dumps(definition).encode(), {"eos_token": "t2"}, None)


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,),
        layer + "input_layernorm.weight": (HIDDEN,), layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), layer + "self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
        layer + "self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN), layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        layer + "mlp.gate_proj.weight": (INNER, HIDDEN), layer + "mlp.up_proj.weight": (INNER, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INNER),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The weight file of the small model in each kind: a folder's *.safetensors, or GGUF."""
    root = tmp_path_factory.mktemp("models")
    plain = root / "plain"
    plain.mkdir()
    save_file(tensors(), plain / "model.safetensors")
    (plain / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = open_checkpoint(plain)
    spec = build_spec(checkpoint.config, {}, checkpoint.shapes)
    made = {"f32": plain / "model.safetensors"}
    for kind in ("q3g32z", "q4g32z", "q8g32"):
        packed, target = RepackedWeights(checkpoint, kind), root / kind
        outgoing = [Outgoing(name, shape, packed.format(name), "rtn") for name, shape in packed.shapes.items()]
        settings = {"config.json": json.dumps(CONFIG).encode()}
        write_folder(
            target,
            outgoing,
            lambda name, of=packed: of.weight(name).parts,
            settings=settings,
            origin=plain,
            source="test",
        )
        made[kind] = next(target.glob("*.safetensors"))
    for kind in ("f16", "q8_0", "q4_k_m"):
        made[f"gguf {kind}"] = root / f"{kind}.gguf"
        write_gguf(made[f"gguf {kind}"], checkpoint, spec, tokenizer(), kind=kind)
    return made


def run(path: Path) -> None:
    """Open a model and make some tokens' logits, of whatever value."""
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    checkpoint.check(spec)
    source = ExecutableWeights(checkpoint)
    plan = make_plan(spec, source.format, tokens=8, rows=2, context=32)
    executor = CpuExecutor(plan, source, threads=2)
    for start, count in ((0, 8), (8, 1)):
        executor.run(batch_of_one(plan, start, count))


def attempt(path: Path, data: bytes) -> str:
    """What becomes of a model whose weight file holds these bytes: the kind of error, or an answer."""
    path.write_bytes(data)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            run(path.parent if path.suffix == ".safetensors" else path)
    except HalfbyteError as error:
        return type(error).__name__
    return "answer"


Change = Callable[[np.random.Generator, bytes], bytes]


def header_nbytes(data: bytes) -> int:
    """Bytes before the tensors, or nearly."""
    return 8 + int.from_bytes(data[:8], "little") if data[:4] != b"GGUF" else min(len(data), 6000)


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes of the header become others."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(header_nbytes(data)))] = int(rng.integers(256))
    return bytes(changed)


def renumber(rng: np.random.Generator, data: bytes) -> bytes:
    """A number of the header becomes an extreme one: a decimal in JSON, eight bytes elsewhere."""
    number = NUMBERS[int(rng.integers(len(NUMBERS)))]
    size = header_nbytes(data)
    if data[:4] == b"GGUF":
        at = int(rng.integers(4, size - 8))
        return data[:at] + (number % 2**64).to_bytes(8, "little") + data[at + 8 :]
    found = list(re.finditer(rb"\d+", data[8:size]))
    match = found[int(rng.integers(len(found)))]
    header = data[8 : 8 + match.start()] + str(number).encode() + data[8 + match.end() : size]
    return len(header).to_bytes(8, "little") + header + data[size:]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(len(data)))]


def append(rng: np.random.Generator, data: bytes) -> bytes:
    """There is more at the end."""
    return data + rng.bytes(int(rng.integers(1, 100)))


def remove(rng: np.random.Generator, data: bytes) -> bytes:
    """Some bytes of the header are missing, so that the rest does not lie where it should."""
    at = int(rng.integers(header_nbytes(data)))
    return data[:at] + data[at + int(rng.integers(1, 20)) :]


def scramble(rng: np.random.Generator, data: bytes) -> bytes:
    """Weights are other bytes; some are ones that make NaN and infinity in any format."""
    changed, size = bytearray(data), header_nbytes(data)
    for value in (rng.bytes(200), b"\xff" * 200, b"\x00\x7c" * 100):
        at = int(rng.integers(size, len(data) - 200))
        changed[at : at + 200] = value
    return bytes(changed)


KINDS = ["f32", "q3g32z", "q4g32z", "q8g32", "gguf f16", "gguf q8_0", "gguf q4_k_m"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_not_damaged_answer(models: dict[str, Path], kind: str) -> None:
    path = models[kind]
    assert attempt(path, path.read_bytes()) == "answer"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [flip, renumber, cut, append, remove, scramble])
def test_damaged_files_end_in_a_sentence_or_an_answer(models: dict[str, Path], kind: str, change: Change) -> None:
    path = models[kind]
    whole = path.read_bytes()
    try:
        ends = {attempt(path, change(np.random.default_rng([seed, len(kind)]), whole)) for seed in range(CHANGES)}
    finally:
        path.write_bytes(whole)
    assert ends <= {"answer", "InvalidModelError", "UnsupportedModelError", "DeviceError"}
    assert change in (scramble, append) or "InvalidModelError" in ends


def good_fields(program: _native.Program) -> dict[str, dict[str, Any]]:
    """Fields of each op that belong together: 4 tokens, 2 heads of 8 values, 1 head of keys."""

    def floats(*shape: int) -> np.ndarray:
        return np.ones(shape, np.float32)

    def whole(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int32)

    matrix = program.matrix("f32", np.zeros(4 * 16 * 16, np.uint8), None, None, 16, 16, 0)
    heads = {"heads": 2, "kv_heads": 1, "head_dim": 8}
    paging = {"positions": whole(4), "sequences": whole(4), "blocks": whole(1, 2)}
    caches = {"k_cache": floats(2, 1, 4, 8), "v_cache": floats(2, 1, 4, 8)}
    norms = {"q_weight": floats(8), "k_weight": floats(8), "eps": 1e-6, "offset": 0.0}
    shrinks = program.matrix("f32", np.zeros(4 * 2 * 16, np.uint8), None, None, 2, 16, 0)
    expands = program.matrix("f32", np.zeros(4 * 64, np.uint8), None, None, 64, 1, 0)
    kept = {"positions": whole(4), "sequences": whole(4), "table": whole(1, 2)}
    sizes = {"k_heads": 1, "v_heads": 2, "k_dim": 4, "v_dim": 4, "gates_at": 3, "tiled": False}
    growth = {"beta": 0.5, "beta_length": 2}
    line, wide = floats(4, 16), floats(4, 32)
    return {
        "Add": {"x": line, "y": line, "out": line},
        "Attention": {**heads, **paging, **caches, "q": line, "out": line, "scale": 1.0, "window": 3, "softcap": 2.0},
        "CausalConv": {
            **kept, "states": floats(2, 2, 16), "x": wide, "weight": floats(16, 1, 3), "out": line, "gated": False,
        },
        "Embed": {"ids": whole(4), "table": matrix, "out": line, "scale": 1.0},
        "GatedActivation": {"x": wide, "out": line, "activation": "silu"},
        "GateColumns": {"x": line, "y": wide, "out": line, "at": 5, "activation": "silu"},
        "GateHeads": {**heads, "x": line, "gates": floats(4, 48), "out": line},
        "GatedDeltaRule": {
            **kept, **sizes, "states": floats(2, 2, 4, 4), "qkv": line, "gates": line, "a_log": floats(2),
            "dt_bias": floats(2), "out": floats(4, 8),
        },
        "GatedLinear": {"x": line, "weights": [matrix, matrix], "out": line, "activation": "gelu_tanh"},
        "GatedNorm": {"x": line, "gate": wide, "weight": floats(8), "out": line, "gate_at": 4, "eps": 1e-6},
        "KvWrite": {**heads, **paging, **caches, "qkv": wide},
        "Linear": {"x": line, "weights": [matrix, matrix], "bias": floats(32), "out": wide, "residual": wide},
        "LowRank": {
            "x": line, "y": wide, "out": wide, "adapters": whole(4), "columns": whole(1), "scales": floats(2),
            "a": [shrinks], "b": [expands],
        },
        "QkNorm": {**heads, **norms, "qkv": wide, "out": wide, "whole": False, "v_norm": True},
        "RmsNorm": {
            "x": line, "weight": floats(16), "out": line, "eps": 1e-6, "offset": 0.0, "residual": line, "scale": 2.0,
        },
        "Rope": {
            **heads, **growth, "qkv": wide, "table": floats(4, 2, 4), "positions": whole(4), "out": wide, "hadamard": 4,
        },
        "RopeKvWrite": {
            **heads, **paging, **caches, **norms, **growth, "qkv": wide, "table": floats(4, 2, 4), "out": line,
            "hadamard": 4, "v_norm": True,
        },
        "RopeTable": {
            "positions": whole(4), "sets": whole(4), "inv_freq": floats(2, 4), "out": floats(4, 2, 4), "factor": 1.0,
        },
        "Rows": {"x": line, "rows": whole(2), "out": floats(2, 16)},
        "Scale": {"x": line, "factor": floats(1), "out": line},
        "Softcap": {"x": line, "out": line, "cap": 1.0},
        "SplitGates": {**heads, "x": floats(4, 48), "out": wide},
    }  # fmt: skip


def test_every_op_of_the_core_is_tried() -> None:
    assert sorted(good_fields(_native.Program(1, 8))) == sorted(_native.ops())


@pytest.mark.parametrize("op", _native.ops())
def test_steps_with_damaged_fields_are_refused_or_run(op: str) -> None:
    """The core checks what it gets by itself: shapes, types and numbers that do not belong together."""
    rng = np.random.default_rng(0)
    ends = {"made": 0, "refused": 0}
    for attempt in range(200):
        program = _native.Program(2, 8)
        fields = good_fields(program)[op]
        matrix = program.matrix("f32", np.zeros(4 * 8 * 16, np.uint8), None, None, 8, 16, 0)
        for name in rng.choice(list(fields), attempt % 3, replace=False):
            shape = tuple(int(size) for size in rng.choice([0, 1, 2, 4, 8, 16, 32], int(rng.integers(1, 5))))
            dtype = [np.float32, np.int32, np.float16, np.float64][int(rng.integers(4))]
            others = [
                None,
                0,
                1,
                3,
                -1,
                2**31,
                2**62,
                0.5,
                float("nan"),
                "silu",
                matrix,
                [matrix],
                [matrix] * 2,
                [],
                {},
            ]
            fields[name] = np.zeros(shape, dtype) if rng.random() < 0.6 else others[int(rng.integers(len(others)))]
        try:
            program.step(op, ["tokens", "rows", "hidden"][int(rng.integers(3))], fields)
            ends["made"] += 1
        except (ValueError, TypeError):
            ends["refused"] += 1
            continue
        with suppress(ValueError):
            program.run(int(rng.integers(5)), int(rng.integers(3)), bool(rng.integers(2)))
    assert min(ends.values()) > 20
