"""An event holds only numbers that an accountant can bound, and one spelling of each."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import UnsupportedEventError
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian, decode, encode

NOT_REAL = [math.nan, math.inf, -math.inf, -1.0, 0.0, True, "1.0", None, 1j]
NOT_COUNTS = [0, -1, 10**7 + 1, 1.0, True, "1", None, math.nan]

probabilities = st.floats(min_value=5e-324, max_value=1.0)
multipliers = st.floats(min_value=5e-324, max_value=1e6)
amounts = st.integers(min_value=1, max_value=10**7)
events = st.one_of(
    st.builds(
        PoissonGaussian, sampling_probability=probabilities, noise_multiplier=multipliers, steps=amounts
    ),
    st.builds(Gaussian, noise_multiplier=multipliers, releases=amounts),
    st.builds(
        NonPrivate,
        reason=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=200),
        sampling_probability=probabilities,
        releases=amounts,
    ),
)


@pytest.mark.parametrize("value", [*NOT_REAL, 1.0 + 1e-12, 1e300])
def test_a_sampling_probability_outside_its_bounds_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedEventError, match="sampling_probability"):
        PoissonGaussian(sampling_probability=value, noise_multiplier=1.0, steps=1)
    with pytest.raises(UnsupportedEventError, match="sampling_probability"):
        NonPrivate(reason="test", sampling_probability=value)


@pytest.mark.parametrize("value", [*NOT_REAL, 1e6 + 1, 1e300])
def test_a_noise_multiplier_outside_its_bounds_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedEventError, match="noise_multiplier"):
        PoissonGaussian(sampling_probability=0.1, noise_multiplier=value, steps=1)
    with pytest.raises(UnsupportedEventError, match="noise_multiplier"):
        Gaussian(noise_multiplier=value, releases=1)


@pytest.mark.parametrize("value", NOT_COUNTS)
def test_an_amount_outside_its_bounds_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedEventError):
        PoissonGaussian(sampling_probability=0.1, noise_multiplier=1.0, steps=value)
    with pytest.raises(UnsupportedEventError):
        Gaussian(noise_multiplier=1.0, releases=value)
    with pytest.raises(UnsupportedEventError):
        NonPrivate(reason="test", releases=value)
    with pytest.raises(UnsupportedEventError):
        Gaussian(noise_multiplier=1.0, releases=1).scaled(value)


@pytest.mark.parametrize("reason", ["", "x" * 201, "two\nlines", 7])
def test_giving_privacy_up_needs_a_printable_reason(reason: Any) -> None:
    with pytest.raises(UnsupportedEventError, match="reason"):
        NonPrivate(reason=reason)


@given(events)
def test_an_event_survives_its_own_text_exactly(event: Event) -> None:
    assert decode(json.loads(json.dumps(encode(event)))) == event


@given(events, amounts)
def test_scaling_changes_the_amount_and_nothing_else(event: Event, amount: int) -> None:
    scaled = event.scaled(amount)
    assert scaled.amount == amount
    assert scaled.scaled(event.amount) == event
    assert scaled.noise_multiplier == event.noise_multiplier
    assert scaled.sampling_probability == event.sampling_probability


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    numbers: dict[str, Any] = {
        "sampling_probability": np.float32(0.5),
        "noise_multiplier": np.float64(1.5),
        "steps": np.int64(7),
    }
    event = PoissonGaussian(**numbers)
    assert encode(event) == {
        "kind": "poisson_gaussian",
        "noise_multiplier": "1.5",
        "sampling_probability": "0.5",
        "steps": 7,
    }
    assert type(event.steps) is int


GOOD = {"kind": "gaussian", "noise_multiplier": "1.5", "releases": 3}


@pytest.mark.parametrize(
    "value",
    [
        None,
        "gaussian",
        [GOOD],
        {},
        {**GOOD, "extra": 1},
        {"kind": "gaussian", "noise_multiplier": "1.5"},
        {**GOOD, "kind": "laplace"},
        {**GOOD, "kind": "builtins.eval"},
        {**GOOD, "kind": ["gaussian"]},
        {**GOOD, "noise_multiplier": 1.5},
        {**GOOD, "noise_multiplier": "1.50"},
        {**GOOD, "noise_multiplier": "nan"},
        {**GOOD, "noise_multiplier": "inf"},
        {**GOOD, "noise_multiplier": "-1.5"},
        {**GOOD, "noise_multiplier": "0.0"},
        {**GOOD, "noise_multiplier": "1e+300"},
        {**GOOD, "noise_multiplier": "x" * 10_000},
        {**GOOD, "releases": "3"},
        {**GOOD, "releases": 3.0},
        {**GOOD, "releases": True},
        {**GOOD, "releases": 0},
        {**GOOD, "releases": 10**8},
        {"kind": "non_private", "reason": 1, "releases": 1, "sampling_probability": "1.0"},
        {"kind": "poisson_gaussian", "noise_multiplier": "1.0", "sampling_probability": "1.5", "steps": 1},
    ],
)
def test_an_event_that_no_accountant_bounds_is_not_decoded(value: object) -> None:
    with pytest.raises(UnsupportedEventError):
        decode(value)


def test_something_else_than_an_event_is_not_encoded() -> None:
    with pytest.raises(UnsupportedEventError):
        encode("gaussian")  # type: ignore[arg-type]
