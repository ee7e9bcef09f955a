"""Rounding methods on single matrices: against textbook forms, and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.formats import get_format
from halfbyte.quantization import grid, linalg
from halfbyte.quantization.auto import Choice, allocate
from halfbyte.quantization.awq import clip
from halfbyte.quantization.gptq import damped, gptq
from halfbyte.quantization.grid import PLAIN, Grid, GroupFormat, fit, is_grouped
from halfbyte.quantization.recipe import group_format

ROWS, COLUMNS = 24, 160


def form(name: str) -> GroupFormat:
    found = get_format(name)
    assert is_grouped(found)
    return found


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    """A matrix with outliers, and the Hessian of correlated inputs of very different sizes."""
    random = np.random.default_rng(5)
    weight = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    weight[:, 7] *= 20
    mixing = random.standard_normal((COLUMNS, COLUMNS)) + 3 * np.eye(COLUMNS)
    inputs = random.standard_normal((1000, COLUMNS)) @ mixing * np.exp(random.standard_normal(COLUMNS))
    return weight, (inputs.T @ inputs).astype(np.float32)


def error(weight: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    difference = (weight - rounded).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", difference, hessian.astype(np.float64), difference))


def textbook_gptq(weight: np.ndarray, hessian: np.ndarray, grid: Grid) -> np.ndarray:
    """Frantar et al., algorithm 1, with act-order and static groups: column by column, without blocks."""
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)].astype(np.float64))).T
    left = weight[:, order].astype(np.float64)
    result = np.zeros_like(left)
    for i, column in enumerate(order):
        scale, zero = grid.scale[:, column // grid.group], grid.zero[:, column // grid.group]
        result[:, i] = (np.clip(np.rint(left[:, i] / scale) + zero, 0, grid.top) - zero) * scale
        left[:, i:] -= np.outer((left[:, i] - result[:, i]) / upper[i, i], upper[i, i:])
    natural = np.empty_like(result)
    natural[:, order] = result
    return natural


@pytest.mark.parametrize("name", ["q4g32", "q4g64z", "q3g128z"])
def test_gptq_is_the_papers(problem: tuple[np.ndarray, np.ndarray], name: str) -> None:
    weight, hessian = problem
    codes, grid = gptq(weight, hessian, form(name), passes=0)
    expected = textbook_gptq(weight, damped(hessian), grid)
    different = np.abs(grid.values(codes) - expected) > 1e-3 * np.abs(expected).max()
    assert different.mean() < 0.01
    assert error(weight, grid.values(codes), hessian) == pytest.approx(error(weight, expected, hessian), rel=0.02)


@pytest.mark.parametrize("name", ["q4g32", "q4g64z", "q3g64z"])
def test_each_method_is_better_than_the_one_before(problem: tuple[np.ndarray, np.ndarray], name: str) -> None:
    weight, hessian = problem
    plain = fit(weight, form(name), clips=PLAIN).round(weight)
    weighted = fit(weight, form(name), np.diagonal(hessian)).round(weight)
    once, refined = (gptq(weight, hessian, form(name), passes=passes) for passes in (0, 2))
    errors = [
        error(weight, values, hessian)
        for values in (plain, weighted, once[1].values(once[0]), refined[1].values(refined[0]))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.7 * errors[0]
    assert errors[3] < 0.95 * errors[2]


@pytest.mark.parametrize("name", ["q4g32", "q4g32z", "q3g64z"])
def test_plain_grids_are_the_formats_own_rounding(problem: tuple[np.ndarray, np.ndarray], name: str) -> None:
    weight, _ = problem
    grid = fit(weight, form(name), clips=PLAIN)
    ours, theirs = form(name).from_codes(grid.codes(weight), grid.scale, grid.zero), form(name).encode(weight)
    assert ours.keys() == theirs.keys()
    for suffix, part in ours.items():
        np.testing.assert_array_equal(part, theirs[suffix])


@pytest.mark.parametrize("name", ["q4g32", "q4g64z", "q3g32z"])
def test_what_is_stored_is_what_the_grid_says(problem: tuple[np.ndarray, np.ndarray], name: str) -> None:
    weight, hessian = problem
    codes, grid = gptq(weight, hessian, form(name))
    stored = form(name).decode(form(name).from_codes(codes, grid.scale, grid.zero), weight.shape)
    np.testing.assert_array_equal(stored, grid.values(codes))


def test_clipping_never_makes_a_groups_own_output_worse(problem: tuple[np.ndarray, np.ndarray]) -> None:
    weight, hessian = problem
    blocks = np.kron(np.eye(COLUMNS // 32), np.ones((32, 32)))
    plain = fit(weight, form("q4g32z"), clips=PLAIN).round(weight)
    clipped = clip(weight, hessian, form("q4g32z")).round(weight)
    assert error(weight, clipped, hessian * blocks) < 0.99 * error(weight, plain, hessian * blocks)


def test_dead_and_zero_channels_are_harmless() -> None:
    weight = np.zeros((4, 64), np.float32)
    weight[1, 3] = 1.0
    codes, grid = gptq(weight, np.zeros((64, 64), np.float32), form("q4g32z"))
    np.testing.assert_allclose(grid.values(codes), weight, atol=1e-3)


def test_bits_go_where_they_save_most() -> None:
    choices = {
        "tender": [Choice("small", 100, 8.0), Choice("middle", 120, 2.0), Choice("large", 200, 0.1)],
        "tough": [Choice("small", 100, 0.5), Choice("middle", 120, 0.1), Choice("large", 200, 0.0)],
    }
    assert allocate(choices, 220) == {"tender": "middle", "tough": "small"}
    assert allocate(choices, 300) == {"tender": "large", "tough": "small"}
    assert allocate(choices, 1000) == {"tender": "large", "tough": "large"}
    with pytest.raises(UsageError, match="too small"):
        allocate(choices, 199)


def test_names_of_formats_follow_from_bits() -> None:
    assert [group_format(bits, 64, True) for bits in (3, 4, 8, 16)] == ["q3g64z", "q4g64z", "q8g64", None]
    with pytest.raises(UsageError, match="5 bits"):
        group_format(5, 64, True)
    with pytest.raises(UsageError, match="Groups of 48"):
        group_format(4, 48, True)


def test_linear_algebra_in_place_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "_BLOCK", 48)
    random = np.random.default_rng(2)
    x, y, right = (random.standard_normal((rows, 130)).astype(np.float32) for rows in (400, 400, 7))
    gram, product = np.zeros((2, 130, 130), np.float32)
    linalg.add_gram(gram, x)
    np.testing.assert_allclose(linalg.mirror(gram), x.T @ x, rtol=1e-4, atol=1e-3)
    linalg.add_product(product, x, y)
    np.testing.assert_allclose(product, x.T @ y, rtol=1e-4, atol=1e-3)
    factor = linalg.cholesky(gram.copy())
    np.testing.assert_allclose(factor, np.linalg.cholesky(gram), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(linalg.solve(right.copy(), factor) @ gram, right, rtol=1e-3, atol=1e-3)
    with pytest.raises(np.linalg.LinAlgError):
        linalg.cholesky(-gram)


def test_rows_are_worked_on_some_at_a_time_with_the_same_result(
    problem: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem
    codes, found = gptq(weight, hessian, form("q4g32z"))
    monkeypatch.setattr(grid, "_MATRIX_VALUES", 5 * COLUMNS)
    some_codes, some_found = gptq(weight, hessian, form("q4g32z"))
    assert (codes != some_codes).mean() < 0.01
    np.testing.assert_allclose(some_found.scale, found.scale, rtol=0.02, atol=1e-4)
    np.testing.assert_array_equal(clip(weight, hessian, form("q4g64")).scale.shape, (ROWS, 3))
