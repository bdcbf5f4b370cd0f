"""Who holds which record: public splits of public datasets, by keyed hash or by label skew."""

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fednas.errors import ConfigurationError

ORACLE_SHARE = 0.2


def held_out(identifier: bytes, *, key: bytes, share: float = ORACLE_SHARE) -> bool:
    """Say whether a record belongs to the public test set.

    The answer depends on this record and the public key alone: adding or removing another record never moves
    this one.

    Args:
        identifier: stable identifier of the record, or of the recording it was cut from.
        key: public key, one per scenario.
        share: expected share of held-out identifiers, between 0 and 1.

    Returns:
        Whether the record is held out.
    """
    digest = hmac.digest(key, identifier, hashlib.sha256)
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


def dirichlet(
    labels: NDArray[np.int64], sizes: Sequence[int], *, alpha: float, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Divide records among sites of fixed sizes with Dirichlet label skew.

    Every site draws its own class proportions from a symmetric Dirichlet distribution; sites then take turns
    in a random order, each picking a class by its proportions among those with records left. The sizes are
    constants, so they may be declared: only the labels are skewed (Hsu et al. 2019, 1909.06335).

    Args:
        labels: classes of the records, shape (records,).
        sizes: records of each site.
        alpha: concentration, > 0; small values give few classes per site.
        generator: public randomness.

    Returns:
        One sorted array of record positions per site; they are disjoint.

    Raises:
        ConfigurationError: alpha or a size is out of bounds, or the sizes add up to more than the records.
    """
    if not 0.0 < alpha < float("inf"):
        raise ConfigurationError(f"expected 0 < alpha < inf, got {alpha=}")
    if not sizes or min(sizes) < 1 or sum(sizes) > len(labels):
        raise ConfigurationError(
            f"expected sizes of at least 1 that add up to at most {len(labels)} records, got {tuple(sizes)}"
        )
    classes = np.unique(labels)
    pools = [generator.permutation(np.flatnonzero(labels == label)).tolist() for label in classes]
    proportions = generator.dirichlet(np.full(len(classes), alpha), size=len(sizes))
    turns = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    shares: list[list[int]] = [[] for _ in sizes]
    for site in turns:
        left = np.array([len(pool) for pool in pools])
        # A floor keeps the draw possible when only classes that this site would hardly hold are left.
        weights = np.where(left > 0, np.maximum(proportions[site], 1e-12), 0.0)
        picked = generator.choice(len(classes), p=weights / weights.sum())
        shares[site].append(pools[picked].pop())
    return [np.array(sorted(share), dtype=np.int64) for share in shares]
