"""A number that no accountant bounds is refused before one sees it, and the spend is what it was."""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import BudgetExceededError, ConfigurationError, PrivacyError, UnsupportedEventError
from fednas.privacy import accounting, renyi, replacement
from fednas.privacy.accounting import (
    ORDERS,
    RELATIONS,
    epsilon_at_order,
    epsilon_pld,
    epsilon_rdp,
    rdp_curve,
    renyi_budget,
    renyi_divergence,
)
from fednas.privacy.allowance import Allowance
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian, decode
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.numbers import count, encode_real, real
from fednas.privacy.renyi_filter import RenyiFilter
from tests.privacy.ledgers import SMALL, forbidden, open_ledger, operation

NO_NUMBERS: list[Any] = [
    *(True, False, np.True_, np.False_, None, "1", "nan", b"1", 1j, [1.0], {}, np.array([1.0]), object()),
    *(np.datetime64("2020"), np.complex64(1.0), np.str_("1")),
]
NOT_FINITE: list[Any] = [
    kind(text)
    for kind in (float, np.float16, np.float32, np.float64, np.longdouble)
    for text in ("nan", "inf")
]
NOT_POSITIVE: list[Any] = [0, 0.0, -0.0, -1, -5e-324, -math.inf, np.float32(-1), np.int8(-1), np.float64(0)]
HUGE: list[Any] = [
    1e300,
    1e6 + 1,
    10**400,
    np.float64(1.7e308),
    np.uint64(2**64 - 1),
    np.longdouble("1e4000"),
]
BAD = st.one_of(
    st.sampled_from([*NO_NUMBERS, *NOT_FINITE, *NOT_POSITIVE, *HUGE]),
    st.floats(max_value=0.0),
    st.floats(min_value=1e6, exclude_min=True),
    st.text(max_size=4),
)
NO_COUNTS = st.one_of(
    st.sampled_from([*NO_NUMBERS, *NOT_FINITE, *NOT_POSITIVE, 1.0, np.float64(3), 5e-324, 2**63, 10**7 + 1]),
    st.floats(),
    st.integers(max_value=0),
    st.integers(min_value=10**7 + 1),
    st.text(max_size=4),
)


@pytest.fixture(autouse=True)
def _accountants_seen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Whoever asks an accountant for a new mechanism fails, but in tests that are about one."""
    if "accountant" not in request.node.name:
        return

    def seen(*arguments: Any) -> Any:
        raise AssertionError(f"an accountant saw {arguments}")

    monkeypatch.setattr(accounting, "_epsilon_pld", seen)
    monkeypatch.setattr(renyi, "_unit_curve", seen)
    monkeypatch.setattr(renyi, "_unit_divergence", seen)
    monkeypatch.setattr(renyi, "replaced_curve", seen)


def makers(value: Any, amount: Any) -> Iterator[Callable[[], Event]]:
    """Every way to an event that takes a real number or a count."""
    yield lambda: PoissonGaussian(sampling_probability=0.1, noise_multiplier=value, steps=1)
    yield lambda: PoissonGaussian(sampling_probability=value, noise_multiplier=1.0, steps=1)
    yield lambda: Gaussian(noise_multiplier=value, releases=1)
    yield lambda: NonPrivate(reason="test", sampling_probability=value)
    yield lambda: PoissonGaussian(sampling_probability=0.1, noise_multiplier=1.0, steps=amount)
    yield lambda: Gaussian(noise_multiplier=1.0, releases=amount)
    yield lambda: NonPrivate(reason="test", releases=amount)
    yield lambda: Gaussian(noise_multiplier=1.0, releases=1).scaled(amount)
    yield lambda: decode({"kind": "gaussian", "noise_multiplier": value, "releases": 1})
    yield lambda: decode({"kind": "gaussian", "noise_multiplier": "1.0", "releases": amount})
    if isinstance(value, float | int) and not isinstance(value, bool) and real(value) is not None:
        yield lambda: decode({"kind": "gaussian", "noise_multiplier": encode_real(value), "releases": 1})


@given(value=BAD, amount=NO_COUNTS)
@settings(max_examples=300)
def test_no_event_holds_a_number_that_an_accountant_must_not_see(value: Any, amount: Any) -> None:
    for make in makers(value, amount):
        with pytest.raises(UnsupportedEventError):
            make()


@given(BAD)
@settings(max_examples=300)
def test_no_budget_or_delta_holds_a_number_that_an_accountant_must_not_see(value: Any) -> None:
    event = Gaussian(noise_multiplier=1.0, releases=1)
    tries: list[Callable[[], object]] = [
        lambda: PrivacyBudget(epsilon=1.0, delta=value),
        lambda: PrivacyBudget(epsilon=1.0, delta=1e-5, order=value if value is not None else 0),
        lambda: epsilon_pld([event], value),
        lambda: epsilon_rdp([event], value, relation="replace_one"),
        lambda: epsilon_at_order([event], value, 8),
        lambda: renyi_budget(1.0, value, 8),
        lambda: renyi_divergence([event], value),
        lambda: accounting.epsilon_of_site([(event, ("weights",))], value),
    ]
    number = real(value)
    if number is None or not 0.0 < number < math.inf:
        tries += [lambda: PrivacyBudget(epsilon=value, delta=1e-5), lambda: renyi_budget(value, 1e-5, 8)]
    for attempt in tries:
        with pytest.raises(ConfigurationError):
            attempt()


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_bool_a_text_or_an_array_is_no_number(value: Any) -> None:
    assert real(value) is None
    assert count(value) is None


def test_numbers_of_other_kinds_become_plain_floats() -> None:
    for number in (np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)):
        value = real(number)
        assert type(value) is float
        assert value == 0.5


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivacyLedger]:
    with open_ledger(Path(tmp_path_factory.mktemp("numbers")) / "ward.ledger") as ledger:
        ledger.open_plan("run", SMALL)
        yield ledger


AMOUNTS = st.one_of(NO_COUNTS, st.sampled_from([np.int64(1), np.float32(1), Fraction(1), 10**30]))


@given(amount=AMOUNTS, name=st.sampled_from(["search", "alphas", "fitness"]), beside=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_refused_charge_leaves_the_spend_unchanged(
    ledger: PrivacyLedger, amount: Any, name: str, beside: bool
) -> None:
    before = ledger.statement()
    charges = {name: amount, **({"final": 1} if beside else {})}
    with pytest.raises(PrivacyError):
        ledger.release(operation(1), charges=charges, mechanism=forbidden)
    after = ledger.statement()
    assert (after.streams, after.open_reservations) == (before.streams, before.open_reservations)
    assert math.isfinite(after.claimed_epsilon)


@pytest.mark.parametrize("order", [2, 8, 256])
@pytest.mark.parametrize(
    "least",
    [
        PoissonGaussian(sampling_probability=5e-324, noise_multiplier=1e6, steps=1),
        PoissonGaussian(sampling_probability=1e-160, noise_multiplier=1.0, steps=1),
        PoissonGaussian(sampling_probability=1e-300, noise_multiplier=1e6, steps=1),
    ],
)
def test_a_subnormal_spend_is_not_lost(order: int, least: PoissonGaussian) -> None:
    """openmed added floats: once its budget was exhausted, a positive subnormal spend was free for ever."""
    cost = renyi_divergence([least], order)
    assert 0.0 < cost < 1e-300
    for relation in RELATIONS:
        assert np.all(rdp_curve([least], relation=relation) > 0.0)

    cap = PrivacyBudget(epsilon=30.0, delta=1e-5, order=order)
    bound = cap.renyi
    assert bound + cost == bound, "the buggy sum: it would never refuse"

    sigma = math.sqrt(order / 2 / bound)  # one release that is the whole budget, to within a rounding
    while renyi_divergence([Gaussian(noise_multiplier=sigma, releases=1)], order) > bound:
        sigma = math.nextafter(sigma, math.inf)
    filter_ = RenyiFilter(order)
    filter_.add(_fitness(Gaussian(noise_multiplier=sigma, releases=1)), 1)
    left = Fraction(bound) - Fraction(renyi_divergence([Gaussian(noise_multiplier=sigma, releases=1)], order))
    fits = left // Fraction(cost)  # exact: how many subnormal spends the rounding left room for
    if fits == 0:
        assert isinstance(filter_.refusal(cap, [(_fitness(least), 1)]), BudgetExceededError)
    else:
        assert filter_.refusal(cap, [(_fitness(least), 1)]) is None
    filter_.add(_fitness(least), fits)
    assert isinstance(filter_.refusal(cap, [(_fitness(least), 1)]), BudgetExceededError)


def _fitness(event: Event) -> Allowance:
    return Allowance(name="fitness", streams=("fitness",), event=event, clip_norm=1.0)


def test_what_costs_less_than_any_float_costs_the_least_float_at_every_order() -> None:
    least = PoissonGaussian(sampling_probability=5e-324, noise_multiplier=1e6, steps=1)
    assert all(renyi_divergence([least], order) == replacement.LEAST_DIVERGENCE for order in ORDERS)
    assert renyi_divergence([least.scaled(10)], 8) == 10 * replacement.LEAST_DIVERGENCE
