"""Gradients of the original computation, and scales and norms that follow them."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import get_format
from halfbyte.quantization.forward import Forward
from halfbyte.quantization.gradient import _activation
from halfbyte.quantization.refine import Refiner, Stored
from tests.models.tiny import KINDS, LAYERWISE, VOCABULARY, Tiny, tiny

LENGTH, TEXTS = 24, 4
IDS = np.random.default_rng(7).integers(3, VOCABULARY, (TEXTS, LENGTH)).astype(np.int32)


WITH_STATES = [family for family in KINDS if family.startswith(("lfm", "qwen-3.5"))]


def refiner(model: Tiny, form_name: str) -> Refiner:
    """A model rounded to a format, with itself as the original."""
    forward = Forward(model.spec, model.format, LENGTH)
    stored = {}
    for name in model.spec.shapes:
        values = np.asarray(model.tensors[name], np.float32)
        form = get_format(form_name if values.ndim == 2 else "f32")
        parts = form.encode(values)
        stored[name] = Stored(form, parts, form.decode(parts, values.shape))

    def original(text: int) -> np.ndarray:
        stream = forward.start(IDS[text], model.tensors[model.spec.embed])
        for steps in (*forward.layers, forward.head):
            stream = forward.advance(steps, forward.enter(steps, stream), model.tensors.__getitem__)
        return stream

    return Refiner(model.spec, forward, stored, IDS, original)


@pytest.mark.parametrize("family", sorted(set(LAYERWISE) - set(WITH_STATES)))
def test_gradients_are_the_slopes_of_the_divergence(family: str) -> None:
    made = refiner(tiny(family), "q3g32z")
    gradients = made._pull(0)
    assert gradients.keys() == made.weights.keys()
    for name, gradient in gradients.items():
        at, step = made.weights[name], 2e-3
        direction = gradient / np.sqrt(np.square(gradient).mean()) * np.sqrt(np.square(at).mean())
        ends = []
        for sign in (1, -1):
            made.weights[name] = at + np.float32(sign * step) * direction
            ends.append(made.divergence(0))
        made.weights[name] = at
        slope, shown = float(np.vdot(gradient, direction)), 1e-8 / step  # float32 shows no smaller differences
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=0.05, abs=shown), name


@pytest.mark.parametrize("family", WITH_STATES)
def test_layers_with_states_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="which has no gradient"):
        refiner(tiny(family), "q3g32z")._pull(0)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_derivatives_of_activations(activation: str) -> None:
    x = np.linspace(-6, 6, 101)
    value, slope = _activation(x, activation)
    ends = [_activation(x + step, activation)[0] for step in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, atol=1e-6)
    assert value[50] == 0


@pytest.mark.parametrize("form", ["q3g32z", "q4g64"])
def test_refining_lowers_the_divergence(form: str) -> None:
    made = refiner(tiny("phi-4-mini"), form)
    before = np.mean([made.divergence(text) for text in range(TEXTS)])
    parts = made.run(12, lambda what, done, total: None)
    for name, part in parts.items():
        tensor = made.stored[name]
        stored = (tensor.format if tensor.values.ndim == 2 else get_format("f32")).decode(part, tensor.values.shape)
        np.testing.assert_allclose(stored, made.weights[name], rtol=1e-3, atol=1e-6)
        made.weights[name] = stored
    after = np.mean([made.divergence(text) for text in range(TEXTS)])
    assert after < 0.85 * before
    assert all(part.keys() == made.stored[name].parts.keys() for name, part in parts.items())
