"""A plan uses the budget of every stream, exceeds none, and has one hash."""

import json
import math
from typing import Any

import pytest

from fednas.errors import ConfigurationError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import NON_PRIVATE, PrivacyBudget
from fednas.privacy.events import Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.plan import STREAMS, Allowance, PrivacyPlan, ReleaseSchedule

PROPORTIONS = {"weights": 0.9, "architecture": 0.05, "fitness": 0.05}
SCHEDULE = ReleaseSchedule(
    sampling_probability=0.1,
    search_steps=210,
    final_steps=100,
    architecture_steps=20,
    fitness_releases=32,
    clip_norm=1.0,
    architecture_clip_norm=0.1,
)


def budget(epsilon: float = 3.0) -> PrivacyBudget:
    return PrivacyBudget(epsilon=epsilon, delta=1e-5)


def plan(epsilon: float = 3.0, **changes: Any) -> PrivacyPlan:
    fields = {name: getattr(SCHEDULE, name) for name in SCHEDULE.__dataclass_fields__}
    return PrivacyPlan.calibrate(
        budget=budget(epsilon), proportions=PROPORTIONS, schedule=ReleaseSchedule(**{**fields, **changes})
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 30.0])
def test_every_stream_uses_its_epsilon_and_none_exceeds_it(epsilon: float) -> None:
    made = plan(epsilon)
    for stream in STREAMS:
        assert 0.99 * epsilon <= made.epsilon(stream) <= epsilon
    assert made.claim == max(made.epsilon(stream) for stream in STREAMS) <= epsilon


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture_steps": 0, "fitness_releases": 0},
        {"final_steps": 0},
        {"search_steps": 0, "architecture_steps": 0, "fitness_releases": 0},
        {"sampling_probability": 1.0, "search_steps": 20, "final_steps": 10},
        {"sampling_probability": 0.01, "search_steps": 5000, "final_steps": 1000},
        {"fitness_releases": 1000},
    ],
)
def test_any_schedule_uses_at_least_99_percent_of_what_it_reads(changes: dict[str, Any]) -> None:
    made = plan(**changes)
    names = {allowance.name for allowance in made.allowances}
    read = {"weights": {"search", "final"}, "architecture": {"alphas"}, "fitness": {"fitness"}}
    for stream in STREAMS:
        assert made.epsilon(stream) <= 3.0
        if names & read[stream]:
            assert made.epsilon(stream) >= 0.99 * 3.0


def test_training_shares_one_noise_multiplier_and_the_final_is_charged_to_every_stream() -> None:
    made = plan()
    search, final = made.allowance("search"), made.allowance("final")
    assert search.noise_multiplier == final.noise_multiplier == made.noise_multiplier("search")
    assert final.streams == STREAMS
    assert all(final.event in made.events(stream) for stream in STREAMS)
    assert made.events("weights") == (search.event, final.event)


def test_allowances_hold_the_scheduled_amounts_bounds_and_sampling() -> None:
    made = plan()
    assert [(a.name, a.amount, a.clip_norm, a.sampling_probability) for a in made.allowances] == [
        ("search", 210, 1.0, 0.1),
        ("alphas", 20, 0.1, 0.1),
        ("fitness", 32, 1.0, 1.0),
        ("final", 100, 1.0, 0.1),
    ]
    assert isinstance(made.allowance("fitness").event, Gaussian)


def test_what_is_not_scheduled_has_no_allowance() -> None:
    made = plan(architecture_steps=0, fitness_releases=0)
    assert [allowance.name for allowance in made.allowances] == ["search", "final"]
    with pytest.raises(ConfigurationError, match="no allowance 'alphas'"):
        made.allowance("alphas")


def test_noise_is_rounded_up_to_four_decimals() -> None:
    for allowance in plan().allowances:
        assert allowance.noise_multiplier == round(allowance.noise_multiplier, 4)
    made = plan(architecture_steps=0, fitness_releases=0)
    less = PoissonGaussian(
        sampling_probability=0.1, noise_multiplier=made.noise_multiplier("search") * 0.99, steps=310
    )
    assert epsilon_pld([less], 1e-5) > 3.0


def test_the_same_calibration_is_done_once() -> None:
    assert plan() is plan()
    reordered = dict(reversed(PROPORTIONS.items()))
    assert PrivacyPlan.calibrate(budget=budget(), proportions=reordered, schedule=SCHEDULE) is plan()


def test_a_plan_without_privacy_says_so_in_every_event() -> None:
    made = PrivacyPlan.calibrate(budget=NON_PRIVATE, proportions=PROPORTIONS, schedule=SCHEDULE)
    assert all(isinstance(allowance.event, NonPrivate) for allowance in made.allowances)
    assert {allowance.noise_multiplier for allowance in made.allowances} == {0.0}
    assert made.allowance("search").sampling_probability == 0.1
    assert made.allowance("search").amount == 210
    assert made.claim == math.inf
    assert PrivacyPlan.from_json(made.to_json()) == made


def test_a_final_that_leaves_nothing_for_the_search_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="leaves no epsilon"):
        plan(search_steps=0)


def test_reading_an_empty_stream_is_refused() -> None:
    shares = {"weights": 0.9, "architecture": 0.0, "fitness": 0.1}
    with pytest.raises(ConfigurationError, match="share of records is 0"):
        PrivacyPlan.calibrate(budget=budget(), proportions=shares, schedule=SCHEDULE)


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {"weights": 1.0},
        {**PROPORTIONS, "extra": 0.0},
        {**PROPORTIONS, "weights": 0.8},
        {**PROPORTIONS, "weights": math.nan},
        {"weights": 1.1, "architecture": -0.1, "fitness": 0.0},
        7,
        None,
    ],
)
def test_malformed_proportions_are_refused(shares: Any) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyPlan.calibrate(budget=budget(), proportions=shares, schedule=SCHEDULE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.1),
        ("sampling_probability", math.nan),
        ("search_steps", -1),
        ("search_steps", 1.0),
        ("final_steps", 10**7 + 1),
        ("architecture_steps", True),
        ("fitness_releases", None),
        ("clip_norm", 0.0),
        ("clip_norm", math.inf),
        ("architecture_clip_norm", -1.0),
    ],
)
def test_a_schedule_out_of_its_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        plan(**{name: value})


def test_a_plan_survives_its_own_text_and_keeps_its_hash() -> None:
    made = plan()
    again = PrivacyPlan.from_json(made.to_json())
    assert again == made
    assert again.id == made.id
    assert len(made.id) == 64
    assert plan(2.0).id != made.id
    assert " " not in made.to_json()


def mutated(path: list[Any], value: Any) -> str:
    tree = json.loads(plan().to_json())
    node = tree
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(tree, sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["extra"], 1),
        (["version"], 2),
        (["version"], ...),
        (["version"], True),
        (["budget", "epsilon"], 3.0),
        (["budget", "epsilon"], "nan"),
        (["budget", "epsilon"], "3"),
        (["budget", "extra"], "1.0"),
        (["proportions"], {"weights": "1.0"}),
        (["proportions", 0], ["weights"]),
        (["proportions", 0], [["weights"], "0.9"]),
        (["proportions", 0, 1], 0.9),
        (["proportions", 0, 1], "0.8"),
        (["proportions", 1, 0], "weights"),
        (["allowances"], None),
        (["allowances", 0, "name"], "final"),
        (["allowances", 0, "name"], ["search"]),
        (["allowances", 0, "name"], "unknown"),
        (["allowances", 0, "streams"], ["fitness"]),
        (["allowances", 0, "streams"], "weights"),
        (["allowances", 0, "clip_norm"], "0.0"),
        (["allowances", 0, "clip_norm"], 1.0),
        (["allowances", 0, "extra"], 1),
        (["allowances", 0, "event", "steps"], 0),
        (["allowances", 0, "event", "kind"], "laplace"),
        (["allowances", 0, "event", "noise_multiplier"], "1e+300"),
    ],
)
def test_a_plan_with_one_thing_wrong_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyPlan.from_json(mutated(path, value))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", "[" * 100_000, '{"version":1}'])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyPlan.from_json(text)


def test_another_spelling_of_the_same_plan_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="canonical"):
        PrivacyPlan.from_json(" " + plan().to_json())


def test_allowances_twice_or_out_of_order_are_refused() -> None:
    made = plan()
    shares = made.proportions
    for allowances in (made.allowances[::-1], made.allowances[:1] * 2):
        with pytest.raises(ConfigurationError, match="order"):
            PrivacyPlan(budget=budget(), proportions=shares, allowances=allowances)


def test_an_allowance_reads_the_streams_of_its_name_only() -> None:
    event = Gaussian(noise_multiplier=1.0, releases=1)
    with pytest.raises(ConfigurationError, match="reads fitness"):
        Allowance(name="fitness", streams=("weights",), event=event, clip_norm=1.0)
    with pytest.raises(ConfigurationError, match="unknown allowance"):
        Allowance(name="metrics", streams=("weights",), event=event, clip_norm=1.0)


def test_an_unknown_stream_has_no_epsilon() -> None:
    with pytest.raises(ConfigurationError, match="unknown stream"):
        plan().epsilon("validation")
