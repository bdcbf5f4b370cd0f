"""Sandwich roles rotate, operators are drawn fairly, and every path fits its site."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import InfeasibleDeviceError
from fednas.search import sandwich_paths
from fednas.search.feasible import enumerate_space
from fednas.search.path_sampling import Fits, largest_feasible, lowered, smallest_feasible
from fednas.space import Architecture, SearchSpace
from tests.search import synthetic


def _anything(_: Architecture) -> bool:
    return True


def _within(limit: float) -> Fits:
    return lambda architecture: synthetic.load(architecture) <= limit


def test_the_roles_rotate_over_sites_and_rounds() -> None:
    space = synthetic.space()
    for number in range(6):
        paths = sandwich_paths(
            space, fits=[_anything] * 6, round=number, generator=np.random.default_rng(number)
        )
        for site, path in enumerate(paths):
            if (site + number) % 3 == 0:
                assert path == space.smallest()
            if (site + number) % 3 == 1:
                assert path == space.largest()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(16, 400), min_size=1, max_size=9), st.integers(0, 5), st.integers(0, 1000))
def test_every_path_fits_its_site(limits: list[float], number: int, seed: int) -> None:
    space = synthetic.space()
    fits = [_within(limit) for limit in limits]
    paths = sandwich_paths(space, fits=fits, round=number, generator=np.random.default_rng(seed))
    assert len(paths) == len(fits)
    assert all(fit(path) and space.contains(path) for fit, path in zip(fits, paths))


def test_the_same_generator_gives_the_same_paths() -> None:
    space, fits = synthetic.space(), [_within(limit) for limit in (20, 60, 200, 60)]
    first, second = (
        sandwich_paths(space, fits=fits, round=2, generator=np.random.default_rng(5)) for _ in range(2)
    )
    assert first == second


def test_random_paths_draw_every_option_equally_often() -> None:
    space = synthetic.space()
    paths = sandwich_paths(space, fits=[_anything] * 36, round=0, generator=np.random.default_rng(0))
    random = paths[2::3]
    assert len(random) == 12
    assert set(Counter(path["activation"] for path in random).values()) == {4}
    assert set(Counter(path["blocks.0.width"] for path in random).values()) == {3}
    assert set(Counter(path["blocks.0.op"] for path in random).values()) == {4}


def test_independent_draws_would_fail_the_fairness_test() -> None:
    generator = np.random.default_rng(0)
    drawn = Counter(synthetic.space().sample(generator)["activation"] for _ in range(12))
    assert set(drawn.values()) != {4}


def test_each_option_is_drawn_equally_often_over_rounds_too() -> None:
    space = synthetic.space()
    generator = np.random.default_rng(0)
    count = 900
    drawn = Counter(
        sandwich_paths(space, fits=[_anything] * 3, round=0, generator=generator)[2]["activation"]
        for _ in range(count)
    )
    assert sum((seen - count / 3) ** 2 / (count / 3) for seen in drawn.values()) < 13.8


def test_a_site_that_fits_nothing_is_an_error() -> None:
    fits = [_anything, lambda _: False]
    with pytest.raises(InfeasibleDeviceError, match="not even the smallest"):
        sandwich_paths(synthetic.space(), fits=fits, round=0, generator=np.random.default_rng(0))


@pytest.mark.parametrize("limit", [16, 20, 33, 60, 100, 400])
def test_no_single_step_up_from_the_largest_feasible_fits(limit: float) -> None:
    space = synthetic.space()
    found = largest_feasible(space, _within(limit))
    options = space.options()
    assert synthetic.load(found) <= limit
    for other in space.neighbours(found):
        if all(
            options[name].index(other[name]) >= options[name].index(value)
            for name, value in found.choices
            if name in other.as_dict()
        ):
            assert synthetic.load(other) > limit


def test_the_largest_feasible_is_the_largest_when_everything_fits() -> None:
    assert largest_feasible(synthetic.space(), _anything) == synthetic.space().largest()


def test_the_largest_feasible_uses_most_of_a_device() -> None:
    space, limit = synthetic.tiny_space(), 24.0
    most = max(synthetic.load(a) for a in enumerate_space(space) if synthetic.load(a) <= limit)
    assert synthetic.load(largest_feasible(space, _within(limit))) == most
    with pytest.raises(InfeasibleDeviceError):
        largest_feasible(space, lambda _: False)


@pytest.mark.parametrize("space", [synthetic.space(), synthetic.tiny_space()])
@pytest.mark.parametrize("seed", range(5))
def test_lowering_ends_at_the_smallest(space: SearchSpace, seed: int) -> None:
    generator = np.random.default_rng(seed)
    start = space.sample(generator)
    assert lowered(space, start, {space.smallest()}.__contains__, generator) == space.smallest()
    with pytest.raises(InfeasibleDeviceError):
        lowered(space, start, lambda _: False, generator)


def test_a_device_that_the_cheapest_options_do_not_fit_gets_paths_near_them() -> None:
    space = synthetic.space()

    def fits(architecture: Architecture) -> bool:
        return architecture["activation"] != "relu" and architecture["shortcut"] != "none"

    assert not fits(space.smallest())
    for number in range(3):
        (path,) = sandwich_paths(space, fits=[fits], round=number, generator=np.random.default_rng(number))
        assert fits(path)
    differing = dict(smallest_feasible(space, fits).choices).items() - dict(space.smallest().choices).items()
    assert len(differing) == 2
