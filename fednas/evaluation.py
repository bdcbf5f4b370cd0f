"""Fitness as a noised number of correct predictions, and plain accuracy on public data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network
from fednas.supernet.chunks import aligned, chunks, steady_rows
from fednas.supernet.features import stem_features

_CHUNK = 512
_PRIVATE_CHUNK = 32


def predict(network: torch.nn.Module, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most likely class of each record: shape (n,), int64."""
    with torch.no_grad():
        parts = [network(torch.from_numpy(x[i : i + _CHUNK])).argmax(dim=1) for i in range(0, len(x), _CHUNK)]
    return torch.cat(parts).numpy() if parts else np.empty(0, dtype=np.int64)


def correct_predictions(network: torch.nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> int:
    """The number of records whose most likely class is theirs: a sum over records, each judged by itself.

    Args:
        network: maps float32 records to logits.
        x: shape (n, ...); n may be 0.
        y: shape (n,), int64.

    Returns:
        A count; private.

    Guarantees:
        - Whether a record counts does not depend on the other records, on their number or on its place.
    """

    def logits(rows: Tensor, _: Tensor) -> list[Tensor]:
        return [network(rows)]

    count = 0
    with torch.no_grad(), aligned(network):
        size = steady_rows(logits, x.shape[1:], _PRIVATE_CHUNK)
        for rows, labels, number in chunks(torch.from_numpy(x), torch.from_numpy(y), size):
            count += int((network(rows).argmax(dim=1) == labels)[:number].sum())
    return count


def noised_counts(networks: Sequence[Network], records: StreamedRecords, permit: Permit) -> NDArray[np.int64]:
    """For each network the noised number of correct predictions on the fitness stream.

    The noise is the discrete Gaussian of sensitivity 1.

    Args:
        networks: the candidates; one release of the allowance ``fitness`` is charged for each.
        records: the site's records.
        permit: made by the ledger after the charge.

    Returns:
        Shape (len(networks),), int64; may be negative or above the stream's size.

    Guarantees:
        - One record changes each count by at most 1, and each count carries its own noise of the plan's
          multiplier.
        - Only the fitness stream is read; its size does not leave.
    """
    sigma = permit.allowance("fitness").noise_multiplier
    counts = []
    for network in networks:
        features = stem_features(network, records, permit)
        x, y = features.read(permit, "fitness", features.indices(permit, "fitness"))
        counts.append(correct_predictions(network.trunk, x, y))
    noised: NDArray[np.int64] = np.array(counts, dtype=np.int64) + permit.entropy.noise(sigma, len(networks))
    return noised


@dataclass(frozen=True, kw_only=True)
class PublicAccuracy:
    """Accuracy on a public test set: a simulation's oracle, reported and never selected on."""

    accuracy: float
    balanced_accuracy: float


def public_accuracy(network: torch.nn.Module, x: NDArray[np.float32], y: NDArray[np.int64]) -> PublicAccuracy:
    """Plain and balanced accuracy (the mean recall of the classes that occur) on public records.

    Args:
        network: maps float32 records to logits.
        x: shape (n, ...).
        y: shape (n,), int64.
    """
    correct = predict(network, x) == y
    recalls = [float(correct[y == label].mean()) for label in np.unique(y)]
    return PublicAccuracy(accuracy=float(correct.mean()), balanced_accuracy=float(np.mean(recalls)))
