"""A budget is finite unless somebody says in so many words that it is not."""

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ConfigurationError
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf, -math.inf, True, "3", None])
def test_an_epsilon_that_is_not_positive_and_finite_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigurationError, match="epsilon"):
        PrivacyBudget(epsilon=epsilon, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-9, math.nan, math.inf, False, "1e-5", None])
def test_a_delta_outside_zero_to_one_is_refused(delta: float) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        PrivacyBudget(epsilon=1.0, delta=delta)


def test_no_privacy_has_to_be_asked_for_by_name() -> None:
    assert math.isinf(NON_PRIVATE.epsilon)
    assert not NON_PRIVATE.is_private
    assert PrivacyBudget.non_private() == NON_PRIVATE
    with pytest.raises(ConfigurationError, match="non_private"):
        PrivacyBudget(epsilon=math.inf, delta=1e-5)
    with pytest.raises(ConfigurationError, match="infinite"):
        PrivacyBudget(epsilon=3.0, delta=1e-5, is_private=False)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_delta_may_be_at_most_one_over_the_declared_size(size: int) -> None:
    PrivacyBudget(epsilon=1.0, delta=1e-5).check_size(size)


def test_a_delta_that_allows_publishing_a_record_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="100001 records"):
        PrivacyBudget(epsilon=1.0, delta=1e-5).check_size(100_001)
    with pytest.raises(ConfigurationError, match="declared_size"):
        PrivacyBudget(epsilon=1.0, delta=1e-5).check_size(0)
    NON_PRIVATE.check_size(10**9)


@given(
    st.floats(min_value=1e-300, max_value=1e300), st.floats(min_value=1e-300, max_value=1.0, exclude_max=True)
)
def test_a_budget_survives_its_own_text_exactly(epsilon: float, delta: float) -> None:
    budget = PrivacyBudget(epsilon=np.float64(epsilon), delta=delta)
    assert PrivacyBudget.decode(json.loads(json.dumps(budget.encode()))) == budget
    assert pickle.loads(pickle.dumps(budget)) == budget  # noqa: S301 (our own bytes)


def test_the_text_of_no_privacy_reads_back_as_no_privacy() -> None:
    assert PrivacyBudget.decode(NON_PRIVATE.encode()) == NON_PRIVATE


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"epsilon": "3.0"},
        {"epsilon": "3.0", "delta": "1e-05", "extra": "1"},
        {"epsilon": 3.0, "delta": "1e-05"},
        {"epsilon": "3", "delta": "1e-05"},
        {"epsilon": "nan", "delta": "1e-05"},
        {"epsilon": "-inf", "delta": "1e-05"},
        {"epsilon": "3.0", "delta": "0.00001"},
        {"epsilon": " 3.0", "delta": "1e-05"},
        {"epsilon": "1_0.0", "delta": "1e-05"},
    ],
)
def test_a_budget_of_another_spelling_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyBudget.decode(value)
