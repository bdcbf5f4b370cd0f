"""The policy: its derivative, its distribution, its flat form and its state."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import ConfigurationError, InfeasibleDeviceError
from fednas.search import Policy
from fednas.space import Architecture
from tests.search import synthetic


def _policy(seed: int = 0) -> Policy:
    policy = Policy(synthetic.space())
    policy.set_flat(np.random.default_rng(seed).standard_normal(policy.size))
    return policy


def _anything(_: Architecture) -> bool:
    return True


def test_a_fresh_policy_is_uniform() -> None:
    policy = Policy(synthetic.space())
    assert not policy.flat().any()
    options = synthetic.space().options().values()
    assert policy.entropy() == pytest.approx(sum(np.log(len(each)) for each in options))


def test_the_flat_form_is_sorted_by_choice_name() -> None:
    policy = _policy()
    assert list(policy.logits) == sorted(synthetic.space().options())
    assert np.array_equal(policy.flat(), np.concatenate(list(policy.logits.values())))
    assert policy.flat().size == policy.size == sum(map(len, synthetic.space().options().values()))


def test_logits_are_copies() -> None:
    policy = _policy()
    policy.logits["activation"][:] = 9.0
    policy.flat()[:] = 9.0
    assert 9.0 not in policy.flat()


@given(st.integers(0, 1000), st.floats(0.3, 3.0))
def test_the_jacobian_equals_finite_differences(seed: int, temperature: float) -> None:
    policy = _policy(seed)
    architecture = synthetic.space().sample(np.random.default_rng(seed))
    rows = policy.jacobian(architecture, temperature)
    assert list(rows) == [name for name, _ in architecture.choices]
    for name, value in architecture.choices:
        chosen = synthetic.space().options()[name].index(value)
        logits = policy.logits[name]
        for j in range(len(logits)):
            step = 1e-6 * np.eye(len(logits))[j]
            above, below = (np.exp((logits + sign * step) / temperature) for sign in (1, -1))
            slope = (above[chosen] / above.sum() - below[chosen] / below.sum()) / 2e-6
            assert rows[name][j] == pytest.approx(slope, abs=1e-7)


def test_the_jacobian_refuses_an_architecture_of_another_space() -> None:
    with pytest.raises(ConfigurationError):
        _policy().jacobian(synthetic.tiny_space().smallest())


def test_samples_follow_the_softmax() -> None:
    policy = _policy()
    generator = np.random.default_rng(1)
    count = 4000
    drawn = Counter(policy.sample(generator, _anything)["activation"] for _ in range(count))
    observed = np.array([drawn[option] for option in synthetic.space().options()["activation"]])

    def statistic(probabilities: np.ndarray) -> float:
        return float(np.sum((observed - count * probabilities) ** 2 / (count * probabilities)))

    assert statistic(policy.probabilities()["activation"]) < 13.8  # chi-square, 2 degrees of freedom, 0.1 %
    assert statistic(policy.probabilities(temperature=1.5)["activation"]) > 13.8
    assert statistic(policy.probabilities(temperature=2 / 3)["activation"]) > 13.8


def test_a_sample_is_feasible_even_when_draws_hardly_ever_are() -> None:
    space = synthetic.space()
    policy = _policy()
    only = {space.smallest()}
    assert policy.sample(np.random.default_rng(0), only.__contains__) == space.smallest()
    with pytest.raises(InfeasibleDeviceError):
        policy.sample(np.random.default_rng(0), lambda _: False)


def test_learning_steps_down_the_gradient() -> None:
    policy = _policy()
    before = policy.flat()
    gradient = np.random.default_rng(2).standard_normal(policy.size)
    policy.learn(gradient, 0.5)
    assert np.array_equal(policy.flat(), before - 0.5 * gradient)


@pytest.mark.parametrize("broken", [np.zeros(3), np.full(31, np.nan)])
def test_a_malformed_gradient_is_refused_and_changes_nothing(broken: np.ndarray) -> None:
    policy = _policy()
    before = policy.flat()
    with pytest.raises(ConfigurationError):
        policy.learn(broken, 0.5)
    assert np.array_equal(policy.flat(), before)


def test_a_spread_gradient_is_unknown_off_the_path() -> None:
    policy = _policy()
    architecture = synthetic.space().smallest()
    rows = policy.jacobian(architecture)
    flat = policy.spread(rows, np.concatenate([rows[name] for name in sorted(rows)]))
    start = 0
    for name, logits in policy.logits.items():
        part = flat[start : start + len(logits)]
        start += len(logits)
        assert np.array_equal(part, rows[name]) if name in rows else np.isnan(part).all()
    with pytest.raises(ConfigurationError):
        policy.spread(["activation"], np.zeros(2))
    with pytest.raises(ConfigurationError):
        policy.spread(["unheard_of"], np.zeros(0))


def test_state_survives_json_exactly() -> None:
    policy, other = _policy(), Policy(synthetic.space())
    other.restore(json.loads(json.dumps(policy.state())))
    assert np.array_equal(other.flat(), policy.flat())


def test_a_state_of_another_space_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Policy(synthetic.tiny_space()).restore(_policy().state())
    broken: list[dict[str, object]] = [
        {},
        {"logits": None},
        {"logits": {"activation": 3}},
        {"logits": {"a": "b"}},
    ]
    for state in broken:
        with pytest.raises(ConfigurationError):
            _policy().restore(state)


def test_entropy_falls_as_the_policy_decides() -> None:
    policy = Policy(synthetic.space())
    start = policy.entropy()
    policy.set_flat(50.0 * np.random.default_rng(0).standard_normal(policy.size))
    assert 0.0 <= policy.entropy() < 0.3 * start
