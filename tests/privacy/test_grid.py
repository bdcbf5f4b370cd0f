"""The Gaussian mechanism on the integer grid: its sensitivity, its values, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.privacy.entropy import SecureEntropy, SeededEntropy
from fednas.privacy.grid import ARITHMETIC_SLACK, GRID_STEP, noised_sum, sensitivity

Vector = NDArray[np.float64]
clip_norms = st.floats(1e-4, 1e4)


def vectors(seed: int, number: int, size: int, clip_norm: float) -> Vector:
    """Records' contributions: norms from zero to the bound, shape (number, size)."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((number, size))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vector = rows * clip_norm * generator.choice([0.0, 1e-7, 0.3, 1.0], size=(number, 1))
    return scaled


def units(total: Vector, clip_norm: float) -> NDArray[np.int64]:
    """What is released without noise, in grid units."""
    result = noised_sum(total, clip_norm=clip_norm, noise_multiplier=0.0, entropy=SecureEntropy())
    return np.rint(result / (clip_norm * GRID_STEP)).astype(np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 200),
    size=st.integers(1, 400),
    clip_norm=clip_norms,
)
@settings(deadline=None)
def test_one_record_moves_the_rounded_sum_by_at_most_the_sensitivity(
    seed: int, number: int, size: int, clip_norm: float
) -> None:
    rows = vectors(seed, number, size, clip_norm)
    rows[-1] = vectors(seed + 1, 1, size, clip_norm)[0] if seed % 2 else clip_norm / np.sqrt(size)
    moved = units(rows.sum(axis=0), clip_norm) - units(rows[:-1].sum(axis=0), clip_norm)
    assert np.linalg.norm(moved) <= sensitivity(size)


def test_rounding_can_cost_more_than_the_clip_norm_so_the_dimension_counts() -> None:
    size, clip_norm = 10_000, 1.0
    gamma = clip_norm * GRID_STEP
    # Each coordinate steps over a rounding edge: 0.02 units move the rounded sum by a whole one.
    without, record = np.full(size, 0.49 * gamma), np.full(size, 0.02 * gamma)
    moved = units(without + record, clip_norm) - units(without, clip_norm)
    assert np.linalg.norm(moved) > 40 * np.linalg.norm(record) / gamma
    assert np.linalg.norm(moved) <= np.sqrt(size)
    assert sensitivity(size) >= 1.0 / GRID_STEP + np.sqrt(size)


@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_the_sensitivity_is_the_clip_norm_the_slack_and_the_rounding(size: int) -> None:
    assert sensitivity(size) == pytest.approx(1e6 * (1 + ARITHMETIC_SLACK) + size**0.5, rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 50), clip_norm=clip_norms)
@settings(deadline=None)
def test_the_result_is_the_sum_on_the_grid_plus_the_permits_noise(
    seed: int, size: int, clip_norm: float
) -> None:
    total = vectors(seed, 20, max(size, 1), clip_norm).sum(axis=0)[:size]
    result = noised_sum(
        total, clip_norm=clip_norm, noise_multiplier=1.3, entropy=SeededEntropy(seed, "label")
    )
    noise = SeededEntropy(seed, "label").noise(1.3 * sensitivity(size), size)
    gamma = clip_norm * GRID_STEP
    expected = [(round(value / gamma) + int(n)) * gamma for value, n in zip(total, noise, strict=True)]
    assert result.shape == (size,)
    assert np.array_equal(result, np.array(expected))


@given(seed=st.integers(0, 2**32 - 1), clip_norm=clip_norms)
@settings(deadline=None)
def test_without_noise_a_sum_is_off_by_at_most_half_a_step(seed: int, clip_norm: float) -> None:
    total = vectors(seed, 20, 30, clip_norm).sum(axis=0)
    result = noised_sum(total, clip_norm=clip_norm, noise_multiplier=0.0, entropy=SecureEntropy())
    assert np.abs(result - total).max() <= 0.5 * clip_norm * GRID_STEP * (1 + 1e-6)


def test_two_neighbours_release_values_of_one_grid() -> None:
    """No low bits of a float tell which sum the noise was added to."""
    clip_norm = 0.37
    for total in (np.zeros(50), np.random.default_rng(0).standard_normal(50)):
        result = noised_sum(total, clip_norm=clip_norm, noise_multiplier=1.0, entropy=SecureEntropy())
        whole = np.rint(result / (clip_norm * GRID_STEP))
        assert np.array_equal(whole * (clip_norm * GRID_STEP), result)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_not_finite_is_a_bug_and_is_never_released(value: float) -> None:
    with pytest.raises(AssertionError, match="finite by construction"):
        noised_sum(np.array([0.0, value]), clip_norm=1.0, noise_multiplier=1.0, entropy=SecureEntropy())


def test_large_batches_of_large_networks_stay_exact_in_integers() -> None:
    total = np.full(3, 1e6)  # a million records that all point the same way, each of norm 1
    result = noised_sum(total, clip_norm=1.0, noise_multiplier=1e6, entropy=SecureEntropy())
    assert np.abs(result - total).max() < 1e8
    assert np.isfinite(result).all()
