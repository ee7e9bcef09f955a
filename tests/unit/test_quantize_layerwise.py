"""Calibrated quantizing of whole tiny models: every family, resuming, AWQ's equivalence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from halfbyte.checkpoint import open_checkpoint
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import get_format
from halfbyte.models import build_spec
from halfbyte.quantization import awq
from halfbyte.quantization.auto import auto_formats
from halfbyte.quantization.forward import Forward
from halfbyte.quantization.importance import importance
from halfbyte.quantization.layerwise import Layerwise, Task
from halfbyte.quantization.work import WorkFolder
from tests.models.tiny import LAYERWISE, VOCABULARY, Tiny, tiny

LENGTH, TEXTS = 32, 6
IDS = np.random.default_rng(3).integers(3, VOCABULARY, (TEXTS, LENGTH)).astype(np.int32)


def folder(model: Tiny, path: Path) -> Path:
    path.mkdir()
    save_file(
        {name: np.ascontiguousarray(values) for name, values in model.tensors.items()}, path / "model.safetensors"
    )
    (path / "config.json").write_text(json.dumps(model.config, default=str))
    return path


def task(spec: Any, method: Any, scaled: bool = False) -> Task:
    formats = {name: get_format("q4g32z") for name, shape in spec.shapes.items() if len(shape) == 2}
    for layer in spec.layers:
        formats |= dict.fromkeys(awq.scaled_vectors(layer), get_format("f32"))
    return Task(method, formats, IDS, scaled)


def logits(forward: Forward, spec: Any, weights: dict[str, np.ndarray]) -> np.ndarray:
    stream = forward.start(IDS[0], weights[spec.embed])
    for steps in (*forward.layers, forward.head):
        stream = forward.advance(steps, forward.enter(steps, stream), weights.__getitem__)
    return stream


def test_layers_that_read_other_layers_keys_are_refused() -> None:
    model = tiny("gemma-4-e2b")
    with pytest.raises(UnsupportedModelError, match="cannot be quantized layer by layer"):
        Forward(model.spec, model.format, LENGTH)


@pytest.mark.parametrize("family", LAYERWISE)
def test_the_walk_computes_what_transformers_does(family: str) -> None:
    model = tiny(family)
    ours = logits(Forward(model.spec, model.format, LENGTH), model.spec, model.tensors)
    np.testing.assert_allclose(ours, model.logits(IDS[0].tolist()), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", LAYERWISE)
def test_awq_scales_change_nothing_before_rounding(family: str) -> None:
    model = tiny(family)
    spec, random = model.spec, np.random.default_rng(1)
    forms = {name: get_format("q4g32z") for name, shape in spec.shapes.items() if len(shape) == 2}
    weights = dict(model.tensors)
    for layer in spec.layers:
        inputs = {}
        for name in (
            *layer.mixer.into.weights,
            *layer.mixer.o.weights,
            *layer.mlp.gate_up.weights,
            *layer.mlp.down.weights,
        ):
            x = random.standard_normal((64, spec.shapes[name][1])).astype(np.float32)
            x *= np.exp(random.standard_normal(x.shape[1])).astype(np.float32)
            inputs[name] = awq.Inputs(x.T @ x, np.abs(x).mean(axis=0))
        awq.scale_layer(spec, layer, weights, inputs, forms)  # type: ignore[arg-type]
    forward = Forward(spec, model.format, LENGTH)
    changed = [name for name, values in weights.items() if not np.array_equal(values, model.tensors[name])]
    assert any(name in layer.mlp.down.weights for layer in spec.layers for name in changed)
    np.testing.assert_allclose(
        logits(forward, spec, weights), logits(forward, spec, model.tensors), rtol=1e-3, atol=1e-3
    )


def test_gemma_keeps_its_input_norms(tmp_path: Path) -> None:
    assert all("norm_qkv" not in layer.scale_pairs for layer in tiny("gemma-3-1b").spec.layers)
    assert all("norm_qkv" in layer.scale_pairs for layer in tiny("phi-4-mini").spec.layers)


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("family", LAYERWISE)
def test_every_family_gets_closer_than_by_rounding(family: str, method: str, tmp_path: Path) -> None:
    model = tiny(family)
    checkpoint = open_checkpoint(folder(model, tmp_path / "model"))
    spec = build_spec(checkpoint.config, {}, checkpoint.shapes)
    work = WorkFolder(tmp_path / "work", {})
    job = task(spec, method)
    Layerwise(checkpoint, spec, job, work, lambda what, done, total: None).run()
    weights, rounded = dict(model.tensors), dict(model.tensors)
    for name, form in job.formats.items():
        if method == "gptq" and form.name == "f32":
            continue
        weights[name] = form.decode(work.parts(name), spec.shapes[name])
        rounded[name] = form.decode(form.encode(model.tensors[name]), spec.shapes[name])
    forward = Forward(spec, checkpoint.format, LENGTH)
    original = logits(forward, spec, model.tensors)
    errors = [float(np.square(logits(forward, spec, w) - original).mean()) for w in (weights, rounded)]
    assert errors[0] < (0.9 if method == "gptq" else 1.3) * errors[1]


def test_interrupted_work_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    model = tiny("llama-3.2-1b")
    checkpoint = open_checkpoint(folder(model, tmp_path / "model"))
    spec = build_spec(checkpoint.config, {}, checkpoint.shapes)
    seen: list[str] = []

    def interrupt(what: str, done: int, total: int) -> None:
        seen.append(what)
        if done == 1:
            raise KeyboardInterrupt

    whole, broken = WorkFolder(tmp_path / "whole", {}), WorkFolder(tmp_path / "broken", {"task": 1})
    Layerwise(checkpoint, spec, task(spec, "gptq"), whole, lambda what, done, total: None).run()
    with pytest.raises(KeyboardInterrupt):
        Layerwise(checkpoint, spec, task(spec, "gptq"), broken, interrupt).run()
    again = WorkFolder(tmp_path / "broken", {"task": 1})
    assert again.finished == 2
    Layerwise(checkpoint, spec, task(spec, "gptq"), again, lambda what, done, total: seen.append(what)).run()
    assert seen.count("layer 1 of 2") == 1
    for name, shape in spec.shapes.items():
        if len(shape) == 2:
            for suffix, part in whole.parts(name).items():
                np.testing.assert_array_equal(part, again.parts(name)[suffix])
    assert WorkFolder(tmp_path / "broken", {"task": 2}).finished == 0


@pytest.mark.parametrize("family", ["llama-3.2-1b", "gemma-3-1b"])
def test_importance_is_the_mean_square_of_each_input_as_torch_sees_it(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    checkpoint = open_checkpoint(folder(model, tmp_path / "model"))
    found = importance(checkpoint, model.spec, IDS, lambda what, done, total: None)
    squares: dict[str, list[np.ndarray]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=f"{name}.weight": squares.setdefault(name, []).append(inputs[0][0].numpy() ** 2)
        )
        for name, module in model.model.named_modules()
        if f"{name}.weight" in found
    ]
    for ids in IDS:
        model.logits(ids.tolist())
    for hook in hooks:
        hook.remove()
    assert squares.keys() == found.keys()
    for name, rows in squares.items():
        np.testing.assert_allclose(found[name], np.concatenate(rows).mean(axis=0), rtol=1e-3)


def test_bits_are_spent_by_a_budget_and_nothing_is_left_behind(tmp_path: Path) -> None:
    model = tiny("llama-3.2-1b")
    checkpoint = open_checkpoint(folder(model, tmp_path / "model"))
    formats = auto_formats(checkpoint, model.spec, IDS[:2], 9.0, tmp_path, lambda what, done, total: None)
    assert formats.keys() == {name for name, shape in model.spec.shapes.items() if len(shape) == 2}
    assert len(set(formats.values())) > 1
    nbytes = sum(get_format(form).nbytes(model.spec.shapes[name]) for name, form in formats.items())
    assert 8 * nbytes <= 9.0 * model.spec.parameters
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
