"""The peers: what each is installed from, which files it reads, and how those are made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """An engine to measure.

    Attributes:
        title: How the table calls it.
        engine: Its module in `benchmarks.peers.engines`.
        reads: The files it starts from, one of `models.SOURCES`.
        requirements: What pip installs for it.
        environment: The virtual environment it lives in; None for the one that runs this benchmark.
        convert: Arguments of its environment's Python that make `{target}` from `{source}`, if it cannot read
            that as it is.
        unwanted: What pip brings along and the peer does better without.
        weight_bits: Bits it reads a weight at decode, scales included.
        cache_bytes: Bytes of a number in its cache.
        batched: Whether its engine answers several prompts together.
    """

    title: str
    engine: str
    reads: str
    requirements: tuple[str, ...]
    weight_bits: float
    cache_bytes: int
    environment: str | None = "venv"
    convert: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    batched: bool = False


_TORCH = ("torch==2.13.0", "transformers>=5")
_BUILDER = ("-m", "onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{target}", "-p", "int4", "-e", "cpu")
_BUILDER_OPTIONS = ("--extra_options", "block_size=32", "is_symmetric=true", "accuracy_level=4", "hf_token=false")
_OPTIMUM = ("-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", "{source}")
_OPTIMUM_TASK = ("--task", "text-generation-with-past", "--weight-format", "int4")
_OPTIMUM_INT4 = ("--sym", "--group-size", "32", "--ratio", "1.0", "--all-layers", "{target}")

HALFBYTE = "halfbyte"
LLAMA_CPP = "llama.cpp"
PEERS: dict[str, Peer] = {
    HALFBYTE: Peer("Halfbyte", "halfbyte", "halfbyte", (), 4.5, 2, environment=None, batched=True),
    LLAMA_CPP: Peer("llama.cpp", "llama_cpp", "gguf", ("llama-cpp-python",), 4.5, 2, batched=True),
    "onnxruntime-genai": Peer(
        "ONNX Runtime GenAI", "onnxruntime_genai", "hugging_face", ("onnxruntime-genai", "onnx", "onnx-ir", *_TORCH),
        5.0, 4, convert=_BUILDER + _BUILDER_OPTIONS,
    ),
    "openvino-genai": Peer(
        "OpenVINO GenAI", "openvino_genai", "hugging_face",
        (_TORCH[0], "optimum-intel[openvino]", "transformers<5.1", "openvino-genai"), 4.5, 2,
        environment="venv-openvino", convert=_OPTIMUM + _OPTIMUM_TASK + _OPTIMUM_INT4,
        unwanted=("torchvision",),
    ),
    "transformers": Peer("transformers, bf16", "transformers", "hugging_face", _TORCH, 16.0, 2),
    "torchao": Peer("torchao, int4", "torchao", "hugging_face", (*_TORCH, "torchao"), 5.0, 2),
}  # fmt: skip
"""Peers by the name that `--peers` takes; Halfbyte first, the one others are compared with."""
