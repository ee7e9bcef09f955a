"""The random numbers of sampling: a pure function, uniform, and Gumbel distributed."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.sampling.noise import BITS, MOST, coin, coins_below, noise, uniform_bits


def pcg3d(x: int, y: int, z: int) -> tuple[int, int, int]:
    """The published code (Jarzynski and Olano 2020), in Python's own integers."""
    word = 0xFFFFFFFF
    x, y, z = ((v * 1664525 + 1013904223) & word for v in (x, y, z))
    for _ in range(2):
        x = (x + y * z) & word
        y = (y + z * x) & word
        z = (z + x * y) & word
        if _ == 0:
            x, y, z = x ^ x >> 16, y ^ y >> 16, z ^ z >> 16
    return x, y, z


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (7, 1), (2**63 + 5, 2047), (2**64 - 1, 131_071)])
def test_bits_are_those_of_the_published_hash(seed: int, position: int) -> None:
    low, high = seed & 0xFFFFFFFF, seed >> 32
    ids = [0, 1, 17, 128_255]
    expected = [pcg3d(low ^ (position * 0x9E3779B9 & 0xFFFFFFFF), high + position & 0xFFFFFFFF, i)[2] for i in ids]
    assert uniform_bits(seed, position, np.array(ids)).tolist() == [value >> (32 - BITS) for value in expected]


def test_noise_is_gumbel_distributed_for_every_seed_position_and_token() -> None:
    ids = np.arange(200_000)
    for values in (
        noise(3, 5, ids),
        np.concatenate([noise(3, position, ids[:100]) for position in range(2000)]),
        np.concatenate([noise(seed, 5, ids[:100]) for seed in range(2000)]),
    ):
        assert np.isfinite(values).all()
        assert values.mean() == pytest.approx(np.euler_gamma, abs=0.015)
        assert values.var() == pytest.approx(np.pi**2 / 6, abs=0.04)
        for probability in (0.001, 0.1, 0.5, 0.9, 0.999):
            quantile = -np.log(-np.log(probability))
            assert (values < quantile).mean() == pytest.approx(probability, abs=0.004)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.25, 0.3, 0.5, 1 - 1e-9, 1.0])
def test_coins_are_counted_as_they_fall(probability: float) -> None:
    for position in range(500):
        bits = int(uniform_bits(5 ^ 9, position, np.zeros(1, np.int64))[0])
        assert (coin(5, position, 9) < probability) == (bits < coins_below(probability))


def test_noise_reaches_no_further_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = np.array([0, (1 << BITS) - 1], np.uint32)
    monkeypatch.setattr("halfbyte.sampling.noise.uniform_bits", lambda *_: extremes)
    most, least = noise(0, 0, np.arange(2))
    assert most == pytest.approx(24 * np.log(2), rel=1e-6)
    assert least == pytest.approx(-np.log(24 * np.log(2)), rel=1e-5)
    assert most < MOST
