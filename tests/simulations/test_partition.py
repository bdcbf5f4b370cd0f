import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import ConfigurationError
from simulations.partition import dirichlet, held_out

KEY = b"a public key"


def identifiers(count: int) -> list[bytes]:
    return [f"record-{number}".encode() for number in range(count)]


def test_a_fifth_of_the_records_is_held_out() -> None:
    share = np.mean([held_out(name, key=KEY) for name in identifiers(20_000)])
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5


def test_the_share_test_rejects_a_quarter() -> None:
    share = np.mean([held_out(name, key=KEY, share=0.25) for name in identifiers(20_000)])
    assert abs(share - 0.2) > 4 * (0.2 * 0.8 / 20_000) ** 0.5


def test_another_key_holds_out_other_records() -> None:
    names = identifiers(1_000)
    first = [held_out(name, key=b"first") for name in names]
    assert first != [held_out(name, key=b"second") for name in names]


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_shares_of_nothing_and_of_everything_are_exact(share: float, expected: bool) -> None:
    assert all(held_out(name, key=KEY, share=share) is expected for name in identifiers(100))


def test_the_holdout_is_golden() -> None:
    chosen = [number for number, name in enumerate(identifiers(20)) if held_out(name, key=KEY)]
    assert chosen == [1, 2, 8, 12, 18]


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=80),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    alpha=st.floats(0.01, 100.0),
    seed=st.integers(0, 2**31),
)
def test_a_partition_has_the_declared_sizes_and_shares_no_record(
    labels: list[int], cuts: list[int], alpha: float, seed: int
) -> None:
    shares = dirichlet(np.array(labels), cuts, alpha=alpha, generator=np.random.default_rng(seed))
    assert [len(share) for share in shares] == cuts
    rows = np.concatenate(shares)
    assert len(set(rows.tolist())) == sum(cuts)
    assert rows.min() >= 0
    assert rows.max() < len(labels)


def test_a_partition_can_hand_out_every_record() -> None:
    labels = np.repeat(np.arange(5), 20)
    shares = dirichlet(labels, [60, 40], alpha=0.1, generator=np.random.default_rng(1))
    assert sorted(np.concatenate(shares).tolist()) == list(range(100))


def test_the_same_seed_gives_the_same_partition() -> None:
    labels = np.repeat(np.arange(5), 20)
    left, right = (
        dirichlet(labels, [50, 40], alpha=1.0, generator=np.random.default_rng(7)) for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def skew(alpha: float) -> float:
    """The mean largest class share of a site."""
    labels = np.repeat(np.arange(10), 200)
    shares = dirichlet(labels, [100] * 10, alpha=alpha, generator=np.random.default_rng(3))
    return float(np.mean([np.bincount(labels[share]).max() / len(share) for share in shares]))


def test_a_small_alpha_gives_more_skew_than_a_large_one() -> None:
    assert skew(0.1) > 0.5
    assert skew(1000.0) < 0.25


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigurationError, match="alpha"):
        dirichlet(np.zeros(5, dtype=np.int64), [2], alpha=alpha, generator=np.random.default_rng(0))


@pytest.mark.parametrize("sizes", [[], [0, 2], [3, 3]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="at most 5 records"):
        dirichlet(np.zeros(5, dtype=np.int64), sizes, alpha=1.0, generator=np.random.default_rng(0))
