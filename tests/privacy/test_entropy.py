"""The mechanics of noise and sampling; what they look like is judged in tests/statistical."""

import hashlib
import math
import os
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fednas.errors import PrivacyError
from fednas.privacy import discrete_gaussian, entropy
from fednas.privacy.discrete_gaussian import sample
from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy


def stream_of(seed: int, label: str, size: int) -> bytes:
    """The test keystream, made the obvious way."""
    key = hashlib.sha256(f"fednas seeded noise\0{seed}\0{label}".encode()).digest()
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))


def words(seed: int, label: str, size: int) -> list[int]:
    """Its 64-bit integers."""
    stream = stream_of(seed, label, size)
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(size)]


@given(st.integers(), st.text(max_size=20), st.floats(min_value=0.01, max_value=1e7), st.integers(0, 300))
@settings(deadline=None)
def test_noise_is_the_exact_sampler_on_the_keystream(seed: int, label: str, sigma: float, size: int) -> None:
    try:
        label.encode()
    except UnicodeEncodeError:
        return
    given_words = iter(words(seed, label, 4 * size + 200))

    def next_words(number: int) -> np.ndarray:
        return np.array([next(given_words) for _ in range(number)], dtype=np.uint64)

    fast = SeededEntropy(seed, label).noise(sigma, size)
    assert fast.dtype == np.int64
    assert np.array_equal(fast, sample(sigma, size, next_words))


@given(st.integers(), st.floats(min_value=0.0, max_value=1.0, exclude_min=True), st.integers(0, 300))
def test_sampling_equals_its_slow_definition(seed: int, probability: float, size: int) -> None:
    fast = SeededEntropy(seed, "x").poisson(probability, size)
    assert fast.dtype == np.bool_
    threshold = math.floor(probability * 2**53)
    assert fast.tolist() == [word >> 11 < threshold for word in words(seed, "x", size)]


def test_one_source_never_draws_the_same_twice() -> None:
    source = SecureEntropy()
    assert len(set(np.concatenate([source.noise(1e12, 1000), source.noise(1e12, 1000)]).tolist())) == 2000


def test_a_seeded_source_repeats_an_operation_and_never_shares_it() -> None:
    first = SeededEntropy(7, "run/1/a").noise(1e6, 100)
    np.testing.assert_array_equal(first, SeededEntropy(7, "run/1/a").noise(1e6, 100))
    for other in (SeededEntropy(7, "run/1/b"), SeededEntropy(8, "run/1/a"), SeededEntropy(71, "un/1/a")):
        assert not np.array_equal(first, other.noise(1e6, 100))


def test_a_seeded_source_is_the_same_on_every_machine() -> None:
    assert SeededEntropy(0, "golden").noise(1000.0, 6).tolist() == [1235, -1574, 439, 2367, -643, -864]


def test_only_the_secret_source_is_private_and_it_takes_no_seed() -> None:
    assert SecureEntropy().private
    assert not SeededEntropy(0, "x").private
    with pytest.raises(TypeError):
        SecureEntropy(0)  # type: ignore[call-arg]


def test_two_secret_sources_share_nothing() -> None:
    first, second = SecureEntropy(), SecureEntropy()
    draws = [first.noise(1e6, 50), second.noise(1e6, 50), first.noise(1e6, 50)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


def test_a_secret_source_keeps_no_key_in_its_attributes() -> None:
    assert set(vars(SecureEntropy())) == {"_stream"}
    assert not [value for value in vars(SecureEntropy()._stream).values() if isinstance(value, bytes)]


def test_a_forked_source_refuses_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SecureEntropy()
    source.noise(1.0, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PrivacyError, match="forked"):
        source.noise(1.0, 1)
    with pytest.raises(PrivacyError, match="forked"):
        source.poisson(0.5, 1)


@pytest.mark.parametrize("source", [SecureEntropy(), SeededEntropy(0, "x")])
class TestBounds:
    def test_no_noise_is_zeros(self, source: Entropy) -> None:
        assert source.noise(0.0, 3).tolist() == [0, 0, 0]

    def test_nothing_asked_for_is_nothing(self, source: Entropy) -> None:
        assert source.noise(1.0, 0).shape == (0,)
        assert source.poisson(0.5, 0).shape == (0,)

    def test_everybody_is_in_a_sample_of_probability_one(self, source: Entropy) -> None:
        assert source.poisson(1.0, 1000).all()
        assert not source.poisson(5e-324, 1000).any()

    @pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, 2.0**50])
    def test_noise_that_no_integer_holds_is_refused(self, source: Entropy, sigma: float) -> None:
        with pytest.raises(PrivacyError, match="sigma"):
            source.noise(sigma, 1)

    @pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, math.nan, math.inf])
    def test_a_probability_outside_its_bounds_is_refused(self, source: Entropy, probability: float) -> None:
        with pytest.raises(PrivacyError, match="probability"):
            source.poisson(probability, 1)

    def test_a_negative_size_is_refused(self, source: Entropy) -> None:
        with pytest.raises(PrivacyError, match="size"):
            source.noise(1.0, -1)
        with pytest.raises(PrivacyError, match="size"):
            source.poisson(0.5, -1)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_ends_of_the_uniforms_decide_a_sample_and_bend_no_noise(
    word: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of zeros would choose the farthest integer of all; words of ones refuse it."""

    def constant(self: Any, size: int) -> np.ndarray:
        return np.full(size, word, dtype=np.uint64)

    monkeypatch.setattr(entropy._Keystream, "words", constant)
    assert SecureEntropy().poisson(0.5, 3).tolist() == [word == 0] * 3
    assert SecureEntropy().poisson(1.0, 3).all()
    table = discrete_gaussian.proposal(2.0**49)
    kept = discrete_gaussian._accepted(table, 4, SecureEntropy()._stream.words, discrete_gaussian.BAND)
    assert np.all(np.abs(kept) <= 12 * 2**49)
