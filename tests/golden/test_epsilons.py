"""Reference values at delta 1e-5: a refactor leaves them alone, a change says so."""

import warnings

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant

from fednas.privacy.accounting import epsilon_at_order, epsilon_pld, epsilon_rdp
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Gaussian, PoissonGaussian
from fednas.privacy.plan import STREAMS, Allowance, PrivacyPlan, ReleaseSchedule

# sampling probability, noise multiplier, steps: RDP of integer orders, PLD, PRV.
PUBLISHED_RDP = (2.101, 5.550, 9.235, 7.664, 21.18)  # of real orders too: lower, and not what is proved here
REFERENCE = [
    (0.01, 1.0, 1000, 2.1077530754515745, 1.828243645591767, 1.838),
    (0.1, 1.5, 200, 5.612392947215389, 5.0543766514567645, 5.065),
    (1.0, 4.0, 50, 9.337861628831664, 8.59586579425645, 8.606),
    (0.02, 0.7, 500, 7.664087767817467, 6.653780038333708, 6.664),
    (0.2, 2.0, 1000, 21.423596093090207, 19.445476114174472, 19.456),
]


@pytest.mark.parametrize(("q", "sigma", "steps", "rdp", "pld", "prv"), REFERENCE)
def test_reference_epsilons_stay_where_they_are(
    q: float, sigma: float, steps: int, rdp: float, pld: float, prv: float
) -> None:
    event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    assert epsilon_rdp([event], 1e-5) == pytest.approx(rdp, rel=1e-10)
    assert epsilon_pld([event], 1e-5) == pytest.approx(pld, rel=1e-8)
    assert abs(pld - (prv - 0.01)) <= 0.005 * pld + 0.002


@pytest.mark.parametrize(("row", "published"), list(zip(REFERENCE, PUBLISHED_RDP)))
def test_two_other_accountants_agree(
    row: tuple[float, float, int, float, float, float], published: float
) -> None:
    q, sigma, steps, _, pld, prv = row
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = accountant.get_epsilon(1e-5)
    assert measured == pytest.approx(prv, abs=2e-3)
    assert abs(pld - (measured - 0.01)) <= 0.005 * pld + 0.002
    of_real_orders = RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    of_real_orders.compose(dp_accounting.PoissonSampledDpEvent(q, gaussian), steps)
    assert of_real_orders.get_epsilon(1e-5) == pytest.approx(published, rel=5e-4)


# The same rows when one record is replaced: RDP of integer orders, PLD.
REPLACED = [
    (3.1114305646124594, 2.843445811703821),
    (10.099545632402137, 9.264985523097398),
    (22.626631103850336, 20.675508047540802),
    (9.378560074257475, 8.349030219277896),
    (48.84187649474966, 45.08034175520506),
]


@pytest.mark.parametrize(("row", "replaced"), list(zip(REFERENCE, REPLACED)))
def test_reference_epsilons_of_a_replaced_record_stay_where_they_are(
    row: tuple[float, float, int, float, float, float], replaced: tuple[float, float]
) -> None:
    q, sigma, steps, *_ = row
    event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    assert epsilon_rdp([event], 1e-5, relation="replace_one") == pytest.approx(replaced[0], rel=1e-9)
    assert epsilon_pld([event], 1e-5, relation="replace_one") == pytest.approx(replaced[1], rel=1e-8)


# The same rows at the order 8 alone, as a filter of that order adds them up.
AT_ORDER_8 = [
    2.1077530754515634,
    8.71004274438798,
    13.714109167845534,
    1847.4225536798012,
    66.16606069988444,
]


@pytest.mark.parametrize(("row", "expected"), list(zip(REFERENCE, AT_ORDER_8)))
def test_reference_epsilons_at_one_order_stay_where_they_are(
    row: tuple[float, float, int, float, float, float], expected: float
) -> None:
    q, sigma, steps, *_ = row
    event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    assert epsilon_at_order([event], 1e-5, 8) == pytest.approx(expected, rel=1e-12)


PROPORTIONS = {"weights": 0.9, "architecture": 0.05, "fitness": 0.05}


def test_the_noise_of_a_usual_plan_stays_where_it_is() -> None:
    plan = PrivacyPlan.calibrate(
        budget=PrivacyBudget(epsilon=3.0, delta=1e-5),
        proportions=PROPORTIONS,
        schedule=ReleaseSchedule(
            sampling_probability=0.1,
            search_steps=210,
            final_steps=100,
            architecture_steps=20,
            fitness_releases=32,
        ),
    )
    noise = {allowance.name: allowance.noise_multiplier for allowance in plan.allowances}
    reference = {"search": 2.6238, "alphas": 1.1933, "fitness": 9.5658, "final": 2.6238}
    assert noise == pytest.approx(reference, abs=2e-4)


def test_the_hash_of_a_plan_stays_what_it_is() -> None:
    plan = PrivacyPlan(
        budget=PrivacyBudget(epsilon=3.0, delta=1e-5),
        proportions=tuple(PROPORTIONS.items()),
        allowances=(
            Allowance(
                name="fitness",
                streams=("fitness",),
                event=Gaussian(noise_multiplier=9.5658, releases=32),
                clip_norm=1.0,
            ),
            Allowance(
                name="final",
                streams=STREAMS,
                event=PoissonGaussian(sampling_probability=0.1, noise_multiplier=2.6238, steps=100),
                clip_norm=1.0,
            ),
        ),
    )
    assert plan.id == "f43413e06475cd218e2540a58831497ffe8bfd9c1204ffe011f19946c94c99cd"
