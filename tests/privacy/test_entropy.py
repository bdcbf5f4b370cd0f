"""The mechanics of noise and sampling; what they look like is judged in tests/statistical."""

import hashlib
import math
import os
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fednas.errors import PrivacyError
from fednas.privacy import entropy
from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy


def words(seed: int, label: str, size: int) -> list[int]:
    """53-bit integers of the test keystream, read the obvious way."""
    key = hashlib.sha256(f"fednas seeded noise\0{seed}\0{label}".encode()).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 11 for i in range(size)]


def slow_noise(seed: int, label: str, sigma: float, size: int) -> list[int]:
    pairs = (size + 1) // 2
    uniforms = words(seed, label, 2 * pairs)
    cosines, sines = [], []
    for first, second in zip(uniforms[:pairs], uniforms[pairs:], strict=True):
        radius = math.sqrt(-2.0 * math.log((first + 1) / 2**53))
        angle = 2.0 * math.pi * second / 2**53
        cosines.append(sigma * radius * math.cos(angle))
        sines.append(sigma * radius * math.sin(angle))
    return [round(value) for value in (cosines + sines)[:size]]


@given(st.integers(), st.text(max_size=20), st.floats(min_value=0.01, max_value=1e7), st.integers(0, 300))
def test_noise_equals_its_slow_definition(seed: int, label: str, sigma: float, size: int) -> None:
    try:
        label.encode()
    except UnicodeEncodeError:
        return
    fast = SeededEntropy(seed, label).noise(sigma, size)
    assert fast.dtype == np.int64
    assert fast.shape == (size,)
    difference = np.abs(fast - np.array(slow_noise(seed, label, sigma, size), dtype=np.int64))
    assert np.all(difference <= 1)  # the last bit of a cosine may turn a tie
    assert np.sum(difference) <= 1


@given(st.integers(), st.floats(min_value=0.0, max_value=1.0, exclude_min=True), st.integers(0, 300))
def test_sampling_equals_its_slow_definition(seed: int, probability: float, size: int) -> None:
    fast = SeededEntropy(seed, "x").poisson(probability, size)
    assert fast.dtype == np.bool_
    assert fast.tolist() == [word < math.floor(probability * 2**53) for word in words(seed, "x", size)]


def test_more_draws_than_a_block_are_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "_BLOCK", 10)
    source = SeededEntropy(1, "x")
    draws = source.noise(1e6, 25)
    again = SeededEntropy(1, "x")
    np.testing.assert_array_equal(draws, np.concatenate([again.noise(1e6, n) for n in (10, 10, 5)]))
    assert len(set(draws.tolist())) == 25


def test_a_seeded_source_repeats_an_operation_and_never_shares_it() -> None:
    first = SeededEntropy(7, "run/1/a").noise(1e6, 100)
    np.testing.assert_array_equal(first, SeededEntropy(7, "run/1/a").noise(1e6, 100))
    for other in (SeededEntropy(7, "run/1/b"), SeededEntropy(8, "run/1/a"), SeededEntropy(71, "un/1/a")):
        assert not np.array_equal(first, other.noise(1e6, 100))


def test_a_seeded_source_is_the_same_on_every_machine() -> None:
    assert SeededEntropy(0, "golden").noise(1000.0, 6).tolist() == [488, -143, 258, -29, 2372, 855]


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


@pytest.mark.parametrize("word", [0, 2**53 - 1])
def test_the_ends_of_the_uniforms_give_finite_noise(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(self: Any, size: int) -> np.ndarray:
        return np.full(size, word, dtype=np.uint64)

    monkeypatch.setattr(entropy._Keystream, "integers", constant)
    largest = np.abs(SecureEntropy().noise(2.0**49, 4)).max()
    assert largest <= 8.58 * 2.0**49 < 2.0**53
