"""The exact sampler, word by word against a slow one in decimals; statistical/ judges what it looks like."""

import decimal
import hashlib
import math
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fednas.privacy import discrete_gaussian
from fednas.privacy.discrete_gaussian import BAND, CUT, MAX_SIGMA, Words, proposal, sample
from fednas.privacy.entropy import SeededEntropy

SIGMAS = (1e-9, 0.01, 0.3, 1.0, 5.0, 25.0, 31.9, 32.0, 1e3, 1.5e6, 1e7, 1e12, MAX_SIGMA)
ONES = 2**64 - 1
each_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def words_of(seed: int) -> Words:
    return SeededEntropy(seed, "words")._stream.words


def high(value: float | int) -> Decimal:
    return Decimal(value)


def chance(sigma: float, x: int) -> Decimal:
    """a(x) to sixty digits."""
    table = proposal(sigma)
    with decimal.localcontext(prec=60):
        mass = (-((high(x) / high(sigma)) ** 2) / 2).exp()
        return high(table.scale) * mass / high(int(table.weights[(x >> table.shift) - table.first]))


def slow_sample(sigma: float, size: int, words: Words) -> list[int]:
    """The module's docstring, draw by draw, with decimals of sixty digits and without any guide."""
    table = proposal(sigma)
    found: list[int] = []
    while len(found) < size:
        number = min(size - len(found), 1 << 16)
        choices = words(number).tolist()
        inner = words(number).tolist() if table.shift else [0] * number
        for choice, low, uniform in zip(choices, inner, words(number).tolist(), strict=True):
            place, rest = 0, choice >> 1
            for weight in table.weights.tolist():
                if rest < weight:
                    break
                place, rest = place + 1, rest - weight
            x = ((table.first + place) << table.shift) + low % 2**table.shift
            with decimal.localcontext(prec=60):
                kept = high(uniform >> 1) / high(2**63) < chance(sigma, x)
            if kept and abs(x) <= table.limit:
                found.append(x)
    return found


@each_sigma
def test_draws_equal_the_slow_definition(sigma: float) -> None:
    assert sample(sigma, 300, words_of(3)).tolist() == slow_sample(sigma, 300, words_of(3))


@given(st.integers(0, 2**32), st.floats(min_value=1e-3, max_value=MAX_SIGMA), st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_draws_equal_the_slow_definition_at_any_scale(seed: int, sigma: float, size: int) -> None:
    draws = sample(sigma, size, words_of(seed))
    assert draws.dtype == np.int64
    assert draws.shape == (size,)
    assert draws.tolist() == slow_sample(sigma, size, words_of(seed))


@each_sigma
def test_settling_every_comparison_exactly_gives_the_same_draws(sigma: float) -> None:
    fast = sample(sigma, 3_000, words_of(7))
    assert np.array_equal(fast, sample(sigma, 3_000, words_of(7), band=1.0))


@pytest.mark.slow
@each_sigma
def test_settling_every_comparison_exactly_gives_the_same_hundred_thousand_draws(sigma: float) -> None:
    fast = sample(sigma, 100_000, words_of(11))
    assert np.array_equal(fast, sample(sigma, 100_000, words_of(11), band=1.0))


@each_sigma
def test_the_weights_add_up_and_no_chance_is_above_one(sigma: float) -> None:
    table = proposal(sigma)
    assert sum(table.weights.tolist()) == 2**63
    assert int(table.weights.min()) >= 1
    assert np.array_equal(table.ends, np.cumsum(table.weights, dtype=np.uint64))
    assert table.limit == math.floor(CUT * sigma)
    for place in range(len(table.weights)):
        start = (table.first + place) << table.shift
        peak = max(start, min(0, start + 2**table.shift - 1))
        if abs(peak) <= table.limit:
            assert 0 < chance(sigma, peak) < 1
    first, last = table.first << table.shift, (table.first + len(table.weights)) << table.shift
    assert first <= -table.limit
    assert table.limit < last


@each_sigma
def test_few_draws_are_thrown_away(sigma: float) -> None:
    table = proposal(sigma)
    kept = discrete_gaussian._accepted(table, 20_000, words_of(1), BAND)
    assert len(kept) > 0.95 * 20_000


@each_sigma
def test_the_guide_finds_what_a_search_finds(sigma: float) -> None:
    table = proposal(sigma)
    near = [int(end) + step for end in table.ends[:-1] for step in (-1, 0, 1)]
    spread = np.random.default_rng(0).integers(0, 2**63, 2_000, dtype=np.uint64).tolist()
    words = np.array([word for word in near + spread if word < 2**63], dtype=np.uint64)
    guessed = table.guide[words >> np.uint64(47)]
    sure = guessed != 0xFFFF
    assert np.array_equal(guessed[sure], np.searchsorted(table.ends, words, side="right")[sure])
    assert np.mean(table.guide != 0xFFFF) > 0.95


@pytest.mark.parametrize("sigma", [0.3, 5.0, 25.0, 1e3, 1.5e6, MAX_SIGMA])
def test_a_float_chance_is_nearer_than_the_band_by_far(sigma: float) -> None:
    table = proposal(sigma)
    drawn = np.random.default_rng(0).uniform(-table.limit, table.limit, 600)
    x = np.unique(np.concatenate([np.rint(drawn), np.arange(-30, 31)]).astype(np.int64))
    x = x[np.abs(x) <= table.limit]
    floats = discrete_gaussian._chances(table, x, ((x >> table.shift) - table.first).astype(np.uint16))
    exact = [chance(sigma, value) for value in x.tolist()]
    errors = [abs(Decimal(a) - b) for a, b in zip(floats.tolist(), exact, strict=True)]
    assert max(errors) < Decimal(2.0**-45)
    assert max(errors) * 500 < Decimal(BAND)


def given_words(*parts: list[int]) -> Words:
    """Words from a script, one list a call; asking for more is an error."""
    script: Iterator[list[int]] = iter(parts)

    def words(number: int) -> NDArray[np.uint64]:
        part = next(script)
        assert len(part) == number
        return np.array(part, dtype=np.uint64)

    return words


@pytest.mark.parametrize("sigma", [5.0, 1.5e6])
@pytest.mark.parametrize("x", [0, 1, -7])
def test_a_tie_of_63_bits_is_settled_by_more_of_them(sigma: float, x: int) -> None:
    table, value = proposal(sigma), chance(sigma, x)
    weight = int(table.weights[(x >> table.shift) - table.first])
    tie = int(value * 2**63)
    with decimal.localcontext(prec=60):
        rest = int((value * 2**63 - tie) * 2**64)  # the next 64 bits of a(x)

    def below(uniform: int, *more: int) -> bool:
        return discrete_gaussian._below(uniform, 63, table, x, weight, given_words(*[[m] for m in more]))

    assert below(tie - 1)  # no word is asked for
    assert not below(tie + 1)
    assert below(tie, 0)
    assert not below(tie, ONES)
    assert below(tie, rest - 1)
    assert not below(tie, rest + 1)
    assert below(tie, rest, 0)
    assert not below(tie, rest, ONES)


def test_a_tie_is_settled_in_a_draw_too() -> None:
    sigma = 5.0
    table = proposal(sigma)
    tie = int(chance(sigma, 0) * 2**63)
    middle = (int(table.ends[-table.first - 1]) + 5) << 1
    for further, drawn in ((0, [0]), (ONES, [])):
        words = given_words([middle], [tie << 1], [further])
        assert discrete_gaussian._accepted(table, 1, words, BAND).tolist() == drawn


@pytest.mark.parametrize("sigma", [0.3, 5.0, 1e3, MAX_SIGMA])
def test_nothing_is_drawn_beyond_the_cut_but_everything_up_to_it_is(sigma: float) -> None:
    table = proposal(sigma)
    size = 2**table.shift
    for end in (-1, 1):
        for distance in (0, 1):
            x = end * (table.limit + distance)
            place = (x >> table.shift) - table.first
            if not 0 <= place < len(table.weights):
                assert distance
                continue
            choice = int(table.ends[place]) - 1
            parts = [[choice << 1], [x % size], [0]] if table.shift else [[choice << 1], [0]]
            drawn = discrete_gaussian._accepted(table, 1, given_words(*parts), BAND)
            assert drawn.tolist() == ([] if distance else [x])


@pytest.mark.parametrize("sigma", [*np.geomspace(0.03, 50.0, 40).tolist(), 1 / 12, 1 / 6, 0.25, 1.0, 200.0])
def test_what_the_cut_leaves_out_has_a_probability_below_two_to_the_minus_100(sigma: float) -> None:
    limit = proposal(sigma).limit
    with decimal.localcontext(prec=60):
        masses = [(-((Decimal(x) / Decimal(sigma)) ** 2) / 2).exp() for x in range(limit + 400)]
        outside = 2 * sum(masses[limit + 1 :])
        assert outside / (2 * sum(masses[1:]) + masses[0]) < Decimal(2) ** -100


def test_draws_do_not_depend_on_how_many_are_asked_for_at_once_but_on_the_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discrete_gaussian, "_BLOCK", 10)
    words = words_of(5)
    assert len(set(sample(1e6, 35, words).tolist())) == 35


GOLDEN = {0.7: "88cd533849b9ddfe", 25.0: "8f620980f014c60d", 1e6: "32e91623949ce795"}


@pytest.mark.parametrize("sigma", list(GOLDEN))
def test_draws_are_the_same_on_every_machine(sigma: float) -> None:
    draws = sample(sigma, 100_000, words_of(0))
    assert hashlib.sha256(draws.astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[sigma]
