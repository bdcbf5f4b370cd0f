"""The benchmark of noise runs, and what it compares draws what it says."""

import sys

import numpy as np
import pytest

from simulations.benchmarks import noise


def test_it_prints_a_row_for_each_sigma(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["noise", "--size", "500"])
    monkeypatch.setattr(noise, "REPEATS", 1)
    monkeypatch.setenv("COLUMNS", "160")
    noise.main()
    shown = capsys.readouterr().out
    assert "500 coordinates" in shown
    assert all(f"{sigma:g}" in shown for sigma in noise.SIGMAS)


@pytest.mark.parametrize("draw", [noise.box_muller, noise.ours, noise.opendp])
def test_what_is_compared_is_noise_of_that_scale(draw: noise.Draw) -> None:
    draws = draw(1000.0, 4001)
    assert draws.dtype == np.int64
    assert draws.shape == (4001,)
    assert abs(float(draws.std()) / 1000.0 - 1.0) < 0.06  # five standard deviations
    assert abs(float(draws.mean())) < 80.0
