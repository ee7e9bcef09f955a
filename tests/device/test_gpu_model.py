"""A model on the GPU through the public API."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wgpu

import halfbyte
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.errors import DeviceError
from halfbyte.model import Model
from halfbyte.models import build_spec
from halfbyte.quantization import quantize
from halfbyte.runtime import Engine, SamplingParams
from tests.constraints import even
from tests.device.gpu import software_index
from tests.unit.cli_fakes import halfbyte as command

QUESTION = {"role": "user", "content": "How do I extract a tar archive?"}
ANSWER = "Use `tar`:\n`tar xf path/to/archive.tar.gz`"


PROMPT = "How do I find large files?"
GPU = ("--device", "gpu", "--gpu", str(software_index()))


@pytest.fixture(autouse=True, scope="module")
def _tested() -> Iterator[None]:
    """The self-test has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("halfbyte.gpu.checks.selftest.faulty_variants", lambda _: frozenset())
        yield


def on_the_gpu(**options: Any) -> Model:
    return halfbyte.load(device="gpu", gpu=software_index(), context=256, **options)


@pytest.fixture(scope="module")
def gpu() -> Model:
    return on_the_gpu(activations="f32", kv_dtype="f32", sequences=2)


@pytest.fixture(scope="module")
def cpu() -> Model:
    return halfbyte.load(device="cpu", activations="f32", kv_dtype="f32", context=256, sequences=2)


def test_the_pocket_model_converses_on_the_gpu() -> None:
    model = on_the_gpu()
    assert model.why_device.startswith("you asked for it: llvmpipe")
    assert model.chat([QUESTION]).text == ANSWER
    messages = [QUESTION, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": "What does grep do?"}]
    second = model.chat(messages, max_tokens=8)
    assert second.num_cached_tokens > 20
    assert second.token_ids == halfbyte.load(device="cpu").chat(messages, max_tokens=8).token_ids


def test_a_real_gpu_is_what_auto_takes_and_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The software GPU stands in for a real one."""
    from halfbyte.gpu.device import adapters, device

    opened, real = device.open_device, adapters.Adapter("Real GPU", "DiscreteGPU", "Vulkan", "1")
    monkeypatch.setattr(adapters, "best_gpu", lambda: (real, ""))
    monkeypatch.setattr(device, "open_device", lambda _: opened(software=True))
    told: list[tuple[str, int, int]] = []
    model = halfbyte.load(context=64, progress=lambda *now: told.append(now))
    assert model.device == "gpu"
    assert model.why_device.startswith("Real GPU was found: llvmpipe")
    assert model.why_device.endswith("passed the self-test in all its kernels")
    assert {what for what, _, _ in told} == {"weights", "kernels"}
    weights = [(done, total) for what, done, total in told if what == "weights"]
    assert weights == sorted(weights)
    assert weights[-1][0] > 0.9 * weights[-1][1]


def test_log_probabilities_are_those_of_the_cpu(gpu: Model, cpu: Model) -> None:
    got, expected = (list(m.stream(PROMPT, max_tokens=5, logprobs=3)) for m in (gpu, cpu))
    assert [t.id for t in got] == [t.id for t in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
        assert [i for i, _ in ours.top_logprobs] == [i for i, _ in theirs.top_logprobs]
        assert [p for _, p in ours.top_logprobs] == pytest.approx([p for _, p in theirs.top_logprobs], abs=1e-3)


@pytest.mark.parametrize(
    ("options", "read_back"),
    [
        ({}, False),
        ({"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}, False),
        ({"temperature": 1.0, "typical_p": 0.7, "seed": 3}, True),
        ({"logprobs": 1}, True),
        ({"dry_multiplier": 2.0, "repetition_penalty": 1.3, "repeat_last_n": 16}, True),
        ({"temperature": 1.0, "mirostat": 2, "mirostat_tau": 1.5, "xtc_probability": 0.5, "seed": 3}, True),
    ],
)
def test_the_same_tokens_as_the_cpus(gpu: Model, cpu: Model, options: dict[str, Any], read_back: bool) -> None:
    got, expected = (m.generate(PROMPT, max_tokens=8, **options) for m in (gpu, cpu))
    assert got.token_ids == expected.token_ids
    assert got.logits_read_back == read_back
    assert not expected.logits_read_back
    assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


def test_a_biased_token_is_never_chosen_and_another_always(gpu: Model) -> None:
    first = gpu.generate(PROMPT, max_tokens=1).token_ids[0]
    assert gpu.generate(PROMPT, max_tokens=6, logit_bias={first: -100.0}).token_ids[0] != first
    assert set(gpu.generate(PROMPT, max_tokens=6, ignore_eos=True, logit_bias={first: 100.0}).token_ids) == {first}


def test_a_seed_gives_the_same_text_again(gpu: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 4.0, "top_p": 0.99, "top_k": 60, "min_p": 1e-4}
    first, again, other = (gpu.generate(PROMPT, seed=seed, **options).token_ids for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_seed_gives_the_same_text_when_another_stream_joins_and_leaves(gpu: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 3.0, "top_p": 0.99, "seed": 5, "ignore_eos": True}
    alone = gpu.generate(PROMPT, **options).token_ids
    with gpu.stream(PROMPT, **options) as stream:
        ids = [next(stream).id for _ in range(6)]
        with gpu.stream("What does grep do?", max_tokens=8, temperature=1.0, seed=9) as other:
            for _ in range(4):
                next(other)
                ids.append(next(stream).id)
        ids += [token.id for token in stream]
    assert tuple(ids) == alone


def test_an_answer_can_be_cancelled_and_the_next_is_whole(gpu: Model) -> None:
    with gpu.stream(PROMPT, max_tokens=40, ignore_eos=True) as stream:
        next(stream), next(stream), next(stream)
    assert stream.result().finish_reason == "cancelled"
    assert gpu.engine.idle
    assert gpu.chat([QUESTION]).text == ANSWER


@pytest.mark.parametrize("each_token", [False, True])
def test_answers_whole_or_cancelled_leave_nothing_behind(gpu: Model, each_token: bool) -> None:
    ids = gpu.encode(PROMPT)

    def answer() -> dict[str, int]:
        engine = Engine(gpu.executor, each_token=each_token)
        whole, begun = (engine.submit(ids, SamplingParams(), max_tokens=count) for count in (6, 40))
        while not whole.finished:
            engine.step()
        engine.cancel(begun)
        engine.cancel_all()
        gc.collect()
        return {name: found["count"] for name, found in wgpu.diagnostics.wgpu_native_counts.get_dict().items()}

    first = answer()
    assert first["BindGroup"]
    second = answer()
    # Devices of tests before are counted, too, and may go meanwhile.
    assert {name for name, count in second.items() if count > first[name]} == set()


def test_sequences_at_once_answer_as_each_alone(gpu: Model) -> None:
    prompts = [gpu.encode(PROMPT), gpu.encode("What does grep do?")]
    alone = [gpu.generate(ids, max_tokens=6, ignore_eos=True).token_ids for ids in prompts]
    assert [answer.token_ids for answer in gpu.generate_many(prompts, max_tokens=6, ignore_eos=True)] == alone


@pytest.mark.parametrize(("masked", "pooling"), [(False, "mean"), (True, "last")])
def test_vectors_are_those_of_the_cpu_beside_an_answer(gpu: Model, cpu: Model, masked: bool, pooling: Any) -> None:
    """Whether tokens that are drawn in the same batches are masked, after these have been submitted, or not."""
    grammar = even(gpu.plan.vocab_size) if masked else None
    texts, options = ["ls", PROMPT, "grep"], {"max_tokens": 8, "ignore_eos": not masked, "grammar": grammar}
    alone = gpu.generate(PROMPT, **options).token_ids
    answer = gpu.submit(PROMPT, **options)
    assert np.abs(gpu.embed(texts, pooling=pooling) - cpu.embed(texts, pooling=pooling)).max() < 1e-4
    assert answer.whole().token_ids == alone


def test_a_device_lost_in_the_middle_is_a_sentence_and_the_next_load_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = on_the_gpu()
    stream = model.stream(PROMPT, max_tokens=60, ignore_eos=True)
    next(stream), next(stream)
    waiting = model.submit(QUESTION["content"], max_tokens=4)
    assert not model.engine.idle, "both are there"
    submit = model.executor.submit

    def lose(*arguments: Any, **options: Any) -> Any:
        """In the engine's thread: wgpu-native ends the process when a device goes between its check and a submit."""
        model.executor.device.handle.destroy()  # type: ignore[attr-defined]
        return submit(*arguments, **options)

    monkeypatch.setattr(model.executor, "submit", lose)
    with pytest.raises(DeviceError) as raised:
        list(stream)
    assert raised.value.hint == "Load the model again, or use device='cpu'."
    with pytest.raises(DeviceError) as same:
        waiting.whole()
    assert (str(same.value), same.value.hint) == (str(raised.value), raised.value.hint)
    with pytest.raises(DeviceError):
        model.generate(PROMPT, max_tokens=2)
    model.close()
    assert on_the_gpu().chat([QUESTION]).text == ANSWER


def test_the_command_line_answers_and_chats() -> None:
    told = command(
        "run", "How do I extract a tar archive?", *GPU, "-v", "--stats", "--typical-p", "0.9", "-t", "0.01", "-n", "4"
    )
    assert told.stdout.startswith("Use `tar`")
    assert "running on gpu: you asked for it: llvmpipe" in told.stderr
    assert "the GPU sampler does not support --typical-p" in told.stderr
    chatted = command("chat", *GPU, "-n", "4", stdin="How do I extract a tar archive?\nWhat does grep do?\n/quit\n")
    assert chatted.exit_code == 0
    assert chatted.stdout.startswith("Use `tar`")
    assert "Find patterns" in chatted.stdout


def test_the_command_line_evaluates(tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"question": "How do I extract a tar archive?", "answer": ANSWER}) + "\n")
    found = command("eval", "answers", "--questions", str(asked), *GPU, "--no-store", "--json")
    assert json.loads(found.stdout)["right"] == 1
    text = tmp_path / "text.txt"
    text.write_text("List the files of a folder. " * 8)
    options = ("--text", str(text), "--window", "32", "--activations", "f32", "--no-store", "--json")
    scored = [json.loads(command("eval", "perplexity", *on, *options).stdout) for on in (GPU, ("--device", "cpu"))]
    assert scored[0]["device"] == "gpu"
    assert scored[0]["ppl"] == pytest.approx(scored[1]["ppl"], rel=1e-3)


@pytest.mark.parametrize("stored", ["q4_k_m", "q3g32z, q8g32"])
def test_quantized_files_answer_as_on_the_cpu(shell_29m: Path, tmp_path: Path, stored: str) -> None:
    """Q4_K and Q6_K as llama.cpp stores them; a folder of 3 bits whose embeddings have 8."""
    if stored == "q4_k_m":
        source = open_checkpoint(shell_29m)
        spec = build_spec(source.config, source.generation_config, source.shapes)
        write_gguf(path := tmp_path / "shell.gguf", source, spec, source.tokenizer_files(), kind=stored)
    else:
        quantize(shell_29m, path := tmp_path / "shell", bits=3, zero_points=True, embed_bits=8)
    gpu, cpu = (
        halfbyte.load(path, device, gpu=number, activations="f32", kv_dtype="f32", context=128)
        for device, number in (("gpu", software_index()), ("cpu", None))
    )
    assert not gpu.notes
    ids = cpu.encode([QUESTION])
    got, expected = (np.concatenate([rows.copy() for rows in model.engine.score(ids)]) for model in (gpu, cpu))
    assert np.abs(got - expected).max() < 2e-3
    answers = [model.generate(ids, max_tokens=12).token_ids for model in (gpu, cpu)]
    assert len(answers[0]) == 12
    assert answers[0] == answers[1]
