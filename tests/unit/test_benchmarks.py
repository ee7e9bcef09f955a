"""The benchmarks measure what they say: identical weights, honest arithmetic, lines that can be read again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoConfig

from benchmarks import kernels_cpu, products
from benchmarks.peers import measure, report
from benchmarks.peers.catalog import HALFBYTE, PEERS
from benchmarks.peers.environment import PeerError, reason
from benchmarks.peers.measure import Agreement, Measurement, Task
from benchmarks.peers.models import SyntheticModel
from benchmarks.peers.remote import Remote
from benchmarks.synthetic import synthetic_config, synthetic_spec
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.cpu import CpuExecutor
from halfbyte.formats import get_format
from halfbyte.models.catalog import catalog_spec
from halfbyte.plan import make_plan
from halfbyte.reference.executor import ReferenceExecutor

ROOT = Path(__file__).parents[2]
FAMILIES = {"llama": "llama-3.2-1b", "phi3": "phi-4-mini", "gemma3": "gemma-3-1b"}
VOCABULARY = 8192


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SyntheticModel:
    """One layer in the shape of Llama-3.2-1B."""
    return SyntheticModel("llama-3.2-1b", layers=1, vocabulary=VOCABULARY, cache=tmp_path_factory.mktemp("models"))


def rows_of(model: SyntheticModel, name: str, count: int = 64) -> NDArray[np.float32]:
    """The first rows of a tensor in Halfbyte's folder, decoded."""
    return open_checkpoint(model.source("halfbyte")).weight(name).decode()[:count]


def test_bfloat16_holds_the_same_numbers(model: SyntheticModel) -> None:
    with safe_open(model.source("hugging_face") / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(file.get_tensor(name)[:64].float().numpy(), rows_of(model, name))


def test_gguf_holds_the_same_numbers(model: SyntheticModel) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(model.source("gguf")).tensors}
    down = tensors["blk.0.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.Q4_0
    decoded = gguf.dequantize(down.data[:64], down.tensor_type)
    np.testing.assert_array_equal(decoded, rows_of(model, "model.layers.0.mlp.down_proj.weight"))
    query = tensors["blk.0.attn_q.weight"]
    order = [half * 32 + pair for pair in range(32) for half in range(2)]
    expected = rows_of(model, "model.layers.0.self_attn.q_proj.weight", 2048)[order]
    np.testing.assert_array_equal(gguf.dequantize(query.data[:64], query.tensor_type), expected)


@pytest.mark.parametrize("form", ["q4g32", "q4g32z"])
def test_quantizing_anew_finds_the_same_weights(model: SyntheticModel, form: str) -> None:
    values = rows_of(model, "model.layers.0.mlp.up_proj.weight")
    again = get_format(form)
    np.testing.assert_array_equal(again.decode(again.encode(values), values.shape), values)


def test_files_are_made_once(model: SyntheticModel) -> None:
    made = model.source("gguf")
    before = made.stat().st_mtime_ns
    assert model.source("gguf") == made
    assert made.stat().st_mtime_ns == before
    assert not list(model.folder.glob("partial-*"))


@pytest.mark.parametrize("name", FAMILIES.values())
def test_next_tokens_of_synthetic_models_are_uncertain(name: str, tmp_path: Path) -> None:
    """Or the divergence between two engines would be zero whatever they compute."""
    model = SyntheticModel(name, layers=1, vocabulary=VOCABULARY, cache=tmp_path)
    checkpoint = open_checkpoint(model.source("halfbyte"))
    plan = make_plan(model.spec, checkpoint.format, tokens=8, rows=1, context=8)
    given = products.batch(plan, 0, 8, np.array([7], np.int32))
    logits = ReferenceExecutor(plan, checkpoint).run(given)[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    assert -np.sum(probabilities * np.log(probabilities)) > 1


@pytest.mark.parametrize("name", FAMILIES.values())
def test_padding_stays_within_a_smaller_vocabulary(name: str, tmp_path: Path) -> None:
    model = SyntheticModel(name, layers=1, vocabulary=VOCABULARY, cache=tmp_path)
    config = AutoConfig.from_pretrained(model.source("hugging_face"))
    assert config.vocab_size == VOCABULARY
    assert (config.pad_token_id or 0) < VOCABULARY


def test_agreement_is_the_divergence_from_halfbyte() -> None:
    half = np.log([0.5, 0.5])
    skewed = np.log([0.25, 0.75])
    found = measure.agreement([half], [skewed])
    assert found.kl == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert found.same_top == 0
    assert measure.agreement([skewed], [skewed + 7]) == Agreement(pytest.approx(0), 1, 1)


def test_decode_reads_weights_and_cache() -> None:
    spec = synthetic_spec(synthetic_config("llama-3.2-1b"))
    matrices = 16 * (3072 * 2048 + 2048 * 2048 + 3 * 8192 * 2048) + 128_256 * 2048
    task = Task("decode", 513, 32)
    assert task.prompt == 480
    cache = 16 * 2 * 8 * 64 * 2 * (480 + 33 / 2)
    assert measure.decode_bytes(spec, PEERS[HALFBYTE], task) == round(matrices * 4.5 / 8 + cache)


def test_decode_reads_no_more_of_a_cache_than_the_window() -> None:
    spec = synthetic_spec(synthetic_config("gemma-3-1b"))
    far, farther = (measure.decode_bytes(spec, PEERS[HALFBYTE], Task("decode", size, 1)) for size in (8192, 8193))
    global_layers = sum(attention.window is None for attention in spec.attentions)
    assert farther - far == global_layers * 2 * 256 * 2


def test_untied_embeddings_are_not_read_at_decode() -> None:
    spec = synthetic_spec(synthetic_config("mistral-7b-v0.3"))
    head = 32_768 * 4096
    layers = 32 * (6144 * 4096 + 4096 * 4096 + 3 * 14_336 * 4096)
    read = measure.decode_bytes(spec, PEERS["transformers"], Task("decode", 1, 1))
    assert read == pytest.approx(2 * (head + layers), rel=1e-4)


@pytest.fixture
def rows() -> list[Measurement]:
    decode = Task("decode", 512, 10)
    agreed = Agreement(0.001, 8, 8)
    return [
        Measurement(HALFBYTE, 2, decode, [0.5, 0.4, 1.0], 500_000_000, [20e9] * 3, Agreement(0, 8, 8)),
        Measurement("llama.cpp", 2, decode, [1.0, 1.0, 2.0], 500_000_000, [20e9] * 3, agreed),
        Measurement("torchao", 2, decode, error="ImportError: no kernel"),
        Measurement(HALFBYTE, 2, Task("prefill", 256), [2.0], None, [20e9]),
        Measurement("torchao", 2, Task("prefill", 256), error="ImportError: no kernel"),
    ]


def test_the_table_shows_medians_spread_bytes_and_ratios(rows: list[Measurement]) -> None:
    lines = [" ".join(line.split()) for line in report.table(rows).splitlines()]
    assert lines[0] == "decode at 512, 2 threads, 20.0 GB/s readable"
    assert lines[2] == "Halfbyte 20.0 10.0 – 25.0 500 10.0 50% 1.00"
    assert lines[3] == "llama.cpp 10.0 5.0 – 10.0 500 5.0 25% 0.50 1.0e-03"
    assert "Halfbyte 128.0 128.0 – 128.0 1.00" in lines
    assert lines.count("torchao, int4, 2 threads: ImportError: no kernel") == 1


def test_records_keep_every_sample(rows: list[Measurement], tmp_path: Path) -> None:
    about = {HALFBYTE: {"versions": {"halfbyte": "0.1"}, "settings": {"cache": "f16"}}}
    lines = report.records(
        rows, time="2026-01-01T00:00:00+00:00", machine={"brand": "X"}, model={"name": "m"}, about=about
    )
    path = tmp_path / "x.jsonl"
    report.append(path, lines[:2])
    report.append(path, lines[2:])
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert read == lines
    assert {line["schema"] for line in read} == {report.SCHEMA}
    assert read[0]["seconds"] == [0.5, 0.4, 1.0]
    assert read[0]["tokens_per_s"] == 20
    assert read[0]["share"] == 0.5
    assert read[0]["task"] == {"kind": "decode", "size": 512, "steps": 10, "sequences": 1, "prompt": 501}
    assert read[2]["error"] == "ImportError: no kernel"
    assert read[2]["tokens_per_s"] is None


def test_a_failed_command_is_one_line() -> None:
    output = "Collecting x\nERROR: No matching distribution found for x\n\nsee the manual\n"
    assert reason(output, 1) == "ERROR: No matching distribution found for x (exit status 1)"
    assert reason("", -9) == "killed by signal 9"


def test_a_worker_answers_and_says_why_it_cannot(
    model: SyntheticModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(kernels_cpu.machine.__file__).parents[2]))
    folder = model.source("halfbyte")
    with Remote(sys.executable, "halfbyte", folder, 1, 64, tmp_path / "log") as remote:
        found = measure.agreements({HALFBYTE: remote}, VOCABULARY)
        assert found == {HALFBYTE: Agreement(0, measure.PROMPTS, measure.PROMPTS)}
        assert remote.ask("prefill", ids=[1, 2, 3]) > 0
        assert remote.ask("decode", ids=[1, 2, 3], tokens=2) > 0
        with pytest.raises(PeerError, match="token id 9999"):
            remote.ask("prefill", ids=[9999])
    with pytest.raises(PeerError, match="nowhere"):
        Remote(sys.executable, "halfbyte", tmp_path / "nowhere", 1, 64, tmp_path / "log")


def test_another_model_is_not_timed() -> None:
    class Fixed:
        def __init__(self, logits: list[float]) -> None:
            self.logits = logits

        def ask(self, do: str, **request: object) -> list[float]:
            return self.logits

    remotes = {HALFBYTE: Fixed([1.0, 2.0, 3.0]), "llama.cpp": Fixed([3.0, 2.0, 1.0]), "torchao": Fixed([np.nan] * 3)}
    found = measure.agreements(remotes, 3)  # type: ignore[arg-type]
    assert isinstance(found[HALFBYTE], Agreement)
    assert "nats from Halfbyte's" in str(found["llama.cpp"])
    assert isinstance(found["torchao"], PeerError)


@pytest.mark.parametrize("product", products.products(catalog_spec("gemma-3-1b"))[:4], ids=lambda p: p.name)
@pytest.mark.parametrize("form", ["q4g32", "f16"])
def test_kernel_products_are_checked_against_the_oracle(product: products.Product, form: str) -> None:
    plan, weights = products.product_plan(product, 3, 2, form)
    executor = CpuExecutor(plan, weights, threads=1)
    out = executor.run(products.batch(plan, 0, 3, np.arange(3, dtype=np.int32)))
    assert products.error(product, plan, weights, out) < kernels_cpu.LARGEST_ERROR
    spoiled = out.copy()
    spoiled[:, : out.shape[1] // 2] *= 1.1
    assert products.error(product, plan, weights, spoiled) > kernels_cpu.LARGEST_ERROR


def test_kernel_benchmark_writes_a_line_a_product(tmp_path: Path) -> None:
    output = tmp_path / "kernels.jsonl"
    script = [sys.executable, "-m", "benchmarks.kernels_cpu"]
    options = ["--models", "gemma-3-1b", "--products", "o", "--formats", "q4g32", "--threads", "1", "--repeat", "2"]
    small = ["--out-of-cache", "1000000", "--tokens", "1", "8", "--output", str(output)]
    done = subprocess.run([*script, "products", *options, *small], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    one, many = [json.loads(line) for line in output.read_text().splitlines()]
    assert (one["product"], one["rows"], one["columns"], one["tokens"]) == ("o", 1152, 1024, 1)
    assert one["nbytes"] == 1152 * 1024 * 9 // 16
    assert one["copies"] == 2
    assert many["flops"] == 2 * 1152 * 1024 * 8
    assert all(len(row["seconds"]) == 2 and row["failure"] is None and row["limit"] > 0 for row in (one, many))
