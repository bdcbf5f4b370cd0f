"""Rules that bear hostile sites, against loops; what they promise, and what noise leaves of it."""

import math
import random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.aggregation import (
    NoisyCount,
    RobustRule,
    average_gradients,
    combine_counts,
    robust_rule,
)

Votes = NDArray[np.float64]
Name = Literal["trimmed_mean", "median", "krum"]
NAMES: tuple[Name, ...] = ("trimmed_mean", "median", "krum")
PER_COORDINATE: tuple[Name, ...] = ("trimmed_mean", "median")

some_values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
"""Small whole numbers among them: ties are where an order could matter."""


@st.composite
def votes(draw: st.DrawFn, *, sites: tuple[int, int] = (1, 9), absent: bool = True) -> Votes:
    """Shape (sites, coordinates), NaN where a site did not train a coordinate."""
    count, size = draw(st.integers(*sites)), draw(st.integers(0, 6))
    values = st.one_of(st.just(math.nan), some_values) if absent else some_values
    rows = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=count, max_size=count))
    return np.array(rows, dtype=np.float64).reshape(count, size)


def rules(*names: Name) -> st.SearchStrategy[RobustRule]:
    return st.builds(RobustRule, name=st.sampled_from(names), max_hostile=st.integers(1, 3))


# Against loops


def slow_coordinate(cast: list[float], rule: RobustRule) -> float:
    made_up = sorted(cast + [0.0] * max(0, 2 * rule.max_hostile + 1 - len(cast)))
    if rule.name == "median":
        half = len(made_up) // 2
        return made_up[half] if len(made_up) % 2 else (made_up[half - 1] + made_up[half]) / 2.0
    kept = made_up[rule.max_hostile : len(made_up) - rule.max_hostile]
    return math.fsum(kept) / len(kept)


def slow_krum(table: list[list[float]], hostile: int) -> list[float]:
    """Blanchard et al. (2017), section 4, for each set of voters on its own."""
    result = [0.0] * len(table[0])
    voters_of = [
        tuple(site for site, row in enumerate(table) if not math.isnan(row[j])) for j in range(len(result))
    ]
    for voters in set(voters_of):
        group = [j for j, found in enumerate(voters_of) if found == voters]
        if len(voters) < 2 * hostile + 3:
            continue
        vectors = [[table[site][j] for j in group] for site in voters]
        scored = []
        for i, vector in enumerate(vectors):
            others = [other for k, other in enumerate(vectors) if k != i]
            distances = sorted(sum((a - b) ** 2 for a, b in zip(vector, other)) for other in others)
            scored.append((sum(distances[: len(voters) - hostile - 2]), vector))
        for j, value in zip(group, min(scored)[1], strict=True):
            result[j] = value
    return result


@given(votes(), rules(*PER_COORDINATE))
@settings(deadline=None)
def test_a_coordinate_is_combined_as_a_loop_over_its_own_voters_does(cast: Votes, rule: RobustRule) -> None:
    columns = [[v for v in column if not math.isnan(v)] for column in cast.T.tolist()]
    slow = [slow_coordinate(column, rule) for column in columns]
    np.testing.assert_allclose(rule(cast), slow, rtol=1e-12, atol=1e-9)


@given(votes(sites=(3, 9)), st.integers(1, 2))
@settings(deadline=None)
def test_krum_chooses_what_a_loop_over_pairs_chooses(cast: Votes, hostile: int) -> None:
    cast = np.round(cast)  # whole numbers add up to the same in any order
    found = RobustRule(name="krum", max_hostile=hostile)(cast)
    assert found.tolist() == slow_krum(cast.tolist(), hostile)


# What the rules promise


@given(votes(), rules(*NAMES), st.randoms())
@settings(deadline=None)
def test_the_order_of_the_sites_has_no_influence(
    cast: Votes, rule: RobustRule, shuffler: random.Random
) -> None:
    order = list(range(len(cast)))
    shuffler.shuffle(order)
    np.testing.assert_array_equal(rule(cast[order]), rule(cast))


@given(st.lists(some_values, max_size=6), st.integers(0, 4), rules(*NAMES))
def test_what_all_sites_agree_on_is_the_result(update: list[float], more: int, rule: RobustRule) -> None:
    one = np.array(update, dtype=np.float64)
    np.testing.assert_array_equal(rule(np.tile(one, (rule.least_sites + more, 1))), one)


def leaves_the_hull(combined: Votes, honest: Votes, least: int, cast: NDArray[np.int64]) -> bool:
    """Whether a coordinate lies outside the honest votes, among which 0 counts where too few voted."""
    for value, column, number in zip(combined, honest.T, cast, strict=True):
        hull = [*column[~np.isnan(column)], *([0.0] if number < least else [])]
        if not min(hull) <= value <= max(hull):
            return True
    return False


@given(votes(), rules(*PER_COORDINATE), st.data())
@settings(deadline=None)
def test_hostile_sites_within_the_number_do_not_move_a_coordinate_out_of_the_honest_hull(
    honest: Votes, rule: RobustRule, data: st.DataObject
) -> None:
    lies = st.one_of(st.just(math.nan), st.floats(-1e30, 1e30))
    size = honest.shape[1]
    hostile = data.draw(st.lists(st.lists(lies, min_size=size, max_size=size), max_size=rule.max_hostile))
    cast = np.concatenate([honest, np.array(hostile, dtype=np.float64).reshape(len(hostile), size)])
    number = np.sum(~np.isnan(cast), axis=0)
    assert not leaves_the_hull(rule(cast), honest, 2 * rule.max_hostile + 1, number)


@pytest.mark.parametrize("name", NAMES)
def test_one_hostile_site_moves_the_mean_out_of_the_hull_and_two_move_a_rule_for_one(name: Name) -> None:
    """So the test above can fail."""
    honest = np.random.default_rng(0).normal(size=(6, 20))
    lie = np.full((1, 20), 100.0)
    number = np.full(20, 7)
    assert leaves_the_hull(average_gradients([*honest, *lie], [1.0] * 7), honest, 3, number)
    assert not leaves_the_hull(
        RobustRule(name=name, max_hostile=1)(np.vstack([honest, lie])), honest, 3, number
    )
    three, two = honest[:3], np.repeat(lie, 4, axis=0)
    assert leaves_the_hull(RobustRule(name=name, max_hostile=1)(np.vstack([three, two])), three, 3, number)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hostile", [1, 2])
def test_a_site_does_not_own_a_coordinate_that_no_more_than_the_hostile_ones_trained(
    name: Name, hostile: int
) -> None:
    cast = np.full((8, 2), np.nan)
    cast[:, 0] = 5.0
    cast[:hostile, 1] = 5.0
    assert RobustRule(name=name, max_hostile=hostile)(cast).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("name", PER_COORDINATE)
def test_a_coordinate_with_too_few_voters_moves_as_far_as_they_agree(name: Name) -> None:
    cast = np.full((5, 3), np.nan)
    cast[:2] = [[3.0, -3.0, 3.0], [1.0, -1.0, -1.0]]
    assert RobustRule(name=name, max_hostile=1)(cast).tolist() == [1.0, -1.0, 0.0]


@given(st.integers(1, 2), st.integers(0, 3), st.integers(1, 5), st.integers(0, 2**16))
@settings(deadline=None)
def test_krum_takes_an_honest_site_where_the_hostile_ones_are_far_enough(
    hostile: int, more: int, size: int, seed: int
) -> None:
    count = 2 * hostile + 3 + more
    generator = np.random.default_rng(seed)
    honest = generator.normal(size=(count - hostile, size))
    diameter = max(float(np.linalg.norm(a - b)) for a in honest for b in honest)
    far = math.sqrt((count - hostile - 2) / (count - 2 * hostile - 1)) * diameter
    lie = generator.normal(size=size)
    lie *= (1.01 * far + float(np.linalg.norm(honest, axis=1).max())) / np.linalg.norm(lie)
    cast = np.vstack([np.tile(lie, (hostile, 1)), honest])  # they collude: all send the same
    found = RobustRule(name="krum", max_hostile=hostile)(cast)
    assert found.tolist() in honest.tolist()


def test_krum_gives_a_liar_nothing_for_agreeing_on_what_all_have_trained() -> None:
    """A distance over all shared coordinates would choose the first site, and with it what it alone says."""
    honest = np.random.default_rng(1).normal(size=(5, 50))
    cast = np.full((6, 52), np.nan)
    cast[1:, :50], cast[0, :50] = honest, honest.mean(axis=0)
    cast[:2, 50:] = [[1e6, 1e6], [0.1, 0.1]]
    found = RobustRule(name="krum", max_hostile=1)(cast)
    assert found[50:].tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(found[:50], cast[0, :50])


def test_krum_leaves_alone_what_fewer_than_its_proof_needs_have_trained() -> None:
    cast = np.array([[1.0, 1.0, np.nan]] * 4 + [[1.0, np.nan, 1.0]])
    assert RobustRule(name="krum", max_hostile=1)(cast).tolist() == [1.0, 0.0, 0.0]


def test_each_rule_says_how_many_sites_it_needs() -> None:
    least = {name: RobustRule(name=name, max_hostile=2).least_sites for name in NAMES}
    assert least == {"trimmed_mean": 5, "median": 5, "krum": 7}
    assert robust_rule("mean", 0) is None
    assert robust_rule("krum", 2) == RobustRule(name="krum", max_hostile=2)


# Architecture gradients and counts


@pytest.mark.parametrize("name", NAMES)
def test_a_claimed_size_buys_no_influence_on_architecture_gradients(name: Name) -> None:
    gradients = list(np.random.default_rng(2).normal(size=(5, 4)))
    rule = RobustRule(name=name, max_hostile=1)
    modest = average_gradients(gradients, [1.0] * 5, rule)
    assert average_gradients(gradients, [1e12, 1.0, 1.0, 1.0, 1.0], rule).tolist() == modest.tolist()
    assert average_gradients(gradients, [1e12, 1.0, 1.0, 1.0, 1.0]).tolist() != modest.tolist()


def count(accuracy: float, *, size: float = 100.0, noise: float = 5.0) -> NoisyCount:
    return NoisyCount(correct=accuracy * size, size=size, noise_std=noise)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_count_leaves_the_fitness_between_the_honest_accuracies(name: Name) -> None:
    honest = [count(0.5), count(0.55), count(0.6), count(0.45)]
    lie = count(80.0, size=1e5, noise=0.0)
    rule = RobustRule(name=name, max_hostile=1)
    assert 0.45 <= combine_counts([*honest, lie], rule).fitness <= 0.6
    assert combine_counts([*honest, lie]).fitness > 1.0


def test_of_accuracies_krum_takes_the_median() -> None:
    counts = [count(0.1), count(0.2), count(0.3), count(0.8), count(0.9)]
    krum = combine_counts(counts, RobustRule(name="krum", max_hostile=1))
    assert krum == combine_counts(counts, RobustRule(name="median", max_hostile=1))
    assert krum.fitness == pytest.approx(0.3)


SIZES = (50.0, 400.0, 120.0, 900.0, 60.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_deviation_is_the_one_of_the_errors_that_are_made(name: Name) -> None:
    generator, rule, errors = np.random.default_rng(5), RobustRule(name=name, max_hostile=1), []
    for _ in range(4000):
        counts = [
            NoisyCount(
                correct=float(generator.binomial(int(size), 0.5) + generator.normal(0.0, 8.0)),
                size=size,
                noise_std=8.0,
            )
            for size in SIZES
        ]
        estimate = combine_counts(counts, rule)
        errors.append((estimate.fitness - 0.5) / estimate.std)
    ratio = float(np.mean(np.square(errors)))
    limit = 5.0 * math.sqrt(2.0 / 4000) + 0.05  # chance here, and in the simulated deviation
    assert abs(ratio - 1.0) < limit
    assert abs(ratio * 2.25 - 1.0) > limit  # two thirds of the deviation would be too small
    assert abs(ratio / 2.25 - 1.0) > limit


# What noise leaves


def test_one_liar_at_the_end_moves_a_noised_median_by_a_share_of_the_noise() -> None:
    noise, sites = 0.3, 15
    honest = np.random.default_rng(3).normal(scale=noise, size=(sites - 1, 20_000))
    lie = np.full((1, 20_000), 1e9)
    moved = float(np.mean(RobustRule(name="median", max_hostile=1)(np.vstack([honest, lie]))))
    assert moved == pytest.approx(1.25 * noise / sites, rel=0.1)


def test_under_noise_krum_takes_a_liar_that_adds_none() -> None:
    """It is no defence then, and the documentation says so."""
    generator = np.random.default_rng(4)
    signal, liar = np.full(400, 0.05), np.full(400, -0.05)
    rule = RobustRule(name="krum", max_hostile=1)
    for noise, chosen in ((0.0001, False), (1.0, True)):
        honest = signal + noise * generator.normal(size=(6, 400))
        assert (rule(np.vstack([liar, honest])).tolist() == liar.tolist()) is chosen


@pytest.mark.parametrize(("name", "expected"), [("trimmed_mean", 1.10), ("median", 1.47), ("krum", None)])
def test_what_the_rules_cost_in_variance_under_noise_alone(name: Name, expected: float | None) -> None:
    """For seven sites: beside a mean's 1, and pi / 2 for the median of many; Krum keeps one site's noise."""
    drawn = np.random.default_rng(6).normal(size=(7, 20_000))
    variance = 7.0 * float(np.var(RobustRule(name=name, max_hostile=1)(drawn)))
    assert variance == pytest.approx(7.0 if expected is None else expected, rel=0.06)
