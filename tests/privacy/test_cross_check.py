"""Accountants that share no code agree on random schedules: on 200 here, on 10 000 in the proof."""

import json
import math
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from opacus.accountants.analysis import rdp as opacus_rdp

from fednas.privacy import accounting
from fednas.privacy.accounting import epsilon_pld, rdp_curve
from fednas.privacy.events import Gaussian, PoissonGaussian
from tests.privacy import cross_check
from tests.privacy.cross_check import (
    Population,
    check,
    done,
    exact_divergence,
    gaussian_epsilon,
    remember,
    run,
    summary,
)


@pytest.fixture
def _remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both accountants compute the same mechanisms again and again."""
    monkeypatch.setattr(opacus_rdp, "_compute_rdp", opacus_rdp._compute_rdp)  # as they were, afterwards
    monkeypatch.setattr(accounting, "_single_loss", accounting._single_loss)
    remember()


@pytest.mark.usefixtures("_remembering")
def test_no_accountant_disagrees_on_200_schedules() -> None:
    population = Population(steps=500, pool=8)
    verdicts = [check(index, population) for index in range(200)]
    assert [verdict for verdict in verdicts if verdict.wrong] == []
    assert len({round(verdict.pld, 6) for verdict in verdicts}) > 150
    assert {verdict.mechanisms for verdict in verdicts} == {1, 2, 3}


@pytest.mark.slow
def test_no_accountant_disagrees_on_10000_schedules(tmp_path: Path) -> None:
    """Two processes, about an hour of one core; CROSS_CHECK_LOG names a file to go on with and to keep."""
    log = Path(os.environ.get("CROSS_CHECK_LOG", tmp_path / "log"))
    with ProcessPoolExecutor(max_workers=2) as pool:
        for half in [pool.submit(run, range(first, 10_000, 2), log) for first in (0, 1)]:
            half.result()
    result = summary(log)
    print(json.dumps(result, indent=1))  # noqa: T201
    assert result["checked"] == 10_000
    assert result["wrong"] == []


@pytest.mark.parametrize("change", ["half the noise", "twice the sampling", "a reset after half the steps"])
def test_the_check_catches_an_accountant_that_is_wrong(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(steps=30)
    events, _ = population.draw(3)
    assert check(3, population).wrong == ()
    wrong = {
        "half the noise": [replace(e, noise_multiplier=e.noise_multiplier / 2) for e in events],
        "twice the sampling": [
            replace(e, sampling_probability=min(1, 2 * e.sampling_probability)) for e in events
        ],
        "a reset after half the steps": [replace(e, steps=math.ceil(e.steps / 2)) for e in events],
    }[change]
    monkeypatch.setattr(Population, "draw", lambda *_: (events, epsilon_pld(wrong, cross_check.DELTA)))
    assert "PLD is PRV" in check(3, population).wrong


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 20.0, 300.0])
def test_one_release_to_everybody_costs_what_the_closed_form_says(sigma: float) -> None:
    exact = gaussian_epsilon(sigma)
    assert (
        exact - 1e-9
        <= epsilon_pld([Gaussian(noise_multiplier=sigma, releases=1)], 1e-5)
        <= exact * 1.001 + 1e-3
    )


@pytest.mark.parametrize(("q", "sigma"), [(1e-3, 0.7), (0.5, 0.6), (0.999, 30.0), (1e-9, 1.0), (0.3, 1000.0)])
def test_the_curve_equals_the_sum_by_sixty_digits(q: float, sigma: float) -> None:
    curve = rdp_curve([PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=1)])
    for order in (2, 3, 16, 64, 256):
        assert curve[order - 2] == pytest.approx(float(exact_divergence(q, sigma, order)), rel=1e-9, abs=0)


@pytest.mark.usefixtures("_remembering")
def test_a_proof_that_was_cut_off_goes_on_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, checked = tmp_path / "log", []
    known = check(3, Population(steps=30))

    def recorded(index: int, _: Population) -> cross_check.Verdict:
        checked.append(index)
        return replace(known, index=index)

    monkeypatch.setattr(cross_check, "check", recorded)
    run(range(3), log)
    log.write_text(log.read_text()[:-9])  # the last line was not finished
    run(range(5), log)
    assert checked == [0, 1, 2, 2, 3, 4]
    assert sorted(done(log)) == [0, 1, 2, 3, 4]
