"""The only randomness of mechanisms: keyed by the operating system, never by an argument."""

import hashlib
import math
import os
import secrets
from typing import Protocol, final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fednas.errors import PrivacyError
from fednas.privacy.discrete_gaussian import MAX_SIGMA, sample

_BITS = 53


class Entropy(Protocol):
    """Where a mechanism's secret randomness comes from."""

    @property
    def private(self) -> bool:
        """Whether nobody can reproduce the draws."""
        ...

    def noise(self, sigma: float, size: int) -> np.ndarray:
        """Return discrete Gaussian noise: integers x with a mass proportional to exp(-x^2 / (2 sigma^2)).

        Args:
            sigma: its parameter, in grid units; 0 returns zeros, for a release without privacy.
            size: how many draws.

        Returns:
            int64 array of shape (size,).
        """
        ...

    def poisson(self, probability: float, size: int) -> np.ndarray:
        """Return which of `size` records are in a sample, each on its own with the same probability.

        Args:
            probability: of a record's inclusion, 0 < q <= 1.
            size: how many records.

        Returns:
            bool array of shape (size,).
        """
        ...


class _Keystream:
    """A stream cipher (AES-256-CTR) as a generator of uniform bits; refuses to be used across a fork."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def words(self, size: int) -> np.ndarray:
        """Return `size` uniform 64-bit words, uint64."""
        if os.getpid() != self._process:
            raise PrivacyError("a noise source was used in a forked process; make a new one in each process")
        return np.frombuffer(self._encryptor.update(bytes(8 * size)), dtype="<u8")

    def noise(self, sigma: float, size: int) -> np.ndarray:
        if not 0.0 <= sigma <= MAX_SIGMA:
            raise PrivacyError(f"expected 0 <= sigma <= 2^49 grid units, got {sigma!r}; use a coarser grid")
        _check_size(size)
        if sigma == 0.0:
            return np.zeros(size, dtype=np.int64)
        return sample(float(sigma), size, self.words)

    def poisson(self, probability: float, size: int) -> np.ndarray:
        if not 0.0 < probability <= 1.0:
            raise PrivacyError(f"expected 0 < probability <= 1, got {probability!r}")
        _check_size(size)
        # Rounded down: the chance of a record is never above the one that is charged.
        threshold = np.uint64(math.floor(probability * 2.0**_BITS))
        return (self.words(size) >> np.uint64(64 - _BITS)) < threshold


def _check_size(size: int) -> None:
    if size < 0:
        raise PrivacyError(f"expected size >= 0, got {size}")


@final
class SecureEntropy:
    """Secret randomness from a fresh key of the operating system; make a new instance for each release.

    Guarantees:
        - The key is 256 bits of the operating system, is never stored, and takes no argument.
        - `noise` draws exactly from the discrete Gaussian cut at 12 sigma, which leaves out less than 2^-100;
          see `fednas.privacy.discrete_gaussian`.
        - `poisson` includes each record on its own with probability floor(q 2^53) / 2^53, never above q.
        - An instance refuses to draw in a forked process, so two processes never share noise.

    Source: Canonne, Kamath and Steinke (2020), arXiv 2004.00010, for noise on the integers.
    """

    def __init__(self) -> None:
        self._stream = _Keystream(secrets.token_bytes(32))

    @property
    def private(self) -> bool:
        """True: nobody can reproduce the draws."""
        return True

    def noise(self, sigma: float, size: int) -> np.ndarray:
        """Return discrete Gaussian noise on the integers; see `Entropy.noise`.

        Args:
            sigma: the distribution's parameter in grid units, 0 to 2^49.
            size: how many draws.

        Returns:
            int64 array of shape (size,).

        Raises:
            PrivacyError: sigma is negative, not finite or too large for exact integers.
        """
        return self._stream.noise(sigma, size)

    def poisson(self, probability: float, size: int) -> np.ndarray:
        """Return a Poisson sample as a mask; see `Entropy.poisson`.

        Args:
            probability: of a record's inclusion, 0 < q <= 1.
            size: how many records.

        Returns:
            bool array of shape (size,).

        Raises:
            PrivacyError: the probability is out of its bounds.
        """
        return self._stream.poisson(probability, size)


@final
class SeededEntropy:
    """Reproducible draws for tests and simulations: whoever knows the seed can subtract the noise.

    Args:
        seed: of the test run.
        label: names the operation, so that a repeated operation draws the same noise and no two share it.
    """

    def __init__(self, seed: int, label: str) -> None:
        text = f"fednas seeded noise\0{int(seed)}\0{label}"
        self._stream = _Keystream(hashlib.sha256(text.encode()).digest())

    @property
    def private(self) -> bool:
        """False: a ledger reports an infinite epsilon for what these draws protected."""
        return False

    def noise(self, sigma: float, size: int) -> np.ndarray:
        """Return discrete Gaussian noise on the integers; see `SecureEntropy.noise`."""
        return self._stream.noise(sigma, size)

    def poisson(self, probability: float, size: int) -> np.ndarray:
        """Return a Poisson sample as a mask; see `SecureEntropy.poisson`."""
        return self._stream.poisson(probability, size)
