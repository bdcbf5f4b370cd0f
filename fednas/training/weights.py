"""DP-SGD of one sub-network on one site: the mechanism that a ledger runs for the weights."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fednas.privacy.grid import noised_sum
from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network
from fednas.supernet import flatten
from fednas.supernet.chunks import suggested_rows
from fednas.supernet.features import stem_features
from fednas.training.engine import opacus_engine


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Public constants of local training.

    Args:
        steps: DP-SGD steps to take.
        learning_rate: of plain SGD.
        momentum: of plain SGD, in [0, 1).
        micro_batch: records whose gradients are held in memory at once; it changes no result beyond rounding.
        divisor_size: the declared size of the records that are read; a step divides by this times the plan's
            sampling probability, never by a count.
    """

    steps: int
    learning_rate: float
    momentum: float
    micro_batch: int
    divisor_size: float


def train_weights(
    network: Network, records: StreamedRecords, permit: Permit, *, allowance: str, optimisation: Optimisation
) -> NDArray[np.float32]:
    """Train a materialised sub-network with DP-SGD (Abadi et al. 2016, 1607.00133) and return its update.

    Args:
        network: holds the weights to start from; its trunk is trained in place.
        records: the site's records.
        permit: made by the ledger after the charge; it carries the noise, the sampling probability and the
            clip norm.
        allowance: the name in the plan that this training is charged to.
        optimisation: public constants.

    Returns:
        Shape (d,), float32: trained minus initial weights, in the order of `flatten`.

    Guarantees:
        - Each step reads an independent Poisson sample of the records of the allowance's streams and no
          other.
        - Sampling probability, steps, divisor, clip norm and noise come from the plan and the site's declared
          size.
        - Each step's only access to the records is one clipped, noised sum; all else is post-processing.
        - An empty sample and records with gradients that are not finite release noise of the same shape.
    """
    terms = permit.allowance(allowance)
    before = flatten(network)
    features = stem_features(network, records, permit)
    candidates = features.indices(permit, allowance)
    with opacus_engine(
        network.trunk,
        clip_norm=terms.clip_norm,
        learning_rate=optimisation.learning_rate,
        momentum=optimisation.momentum,
        micro_batch=suggested_rows(
            terms.sampling_probability * optimisation.divisor_size, optimisation.micro_batch
        ),
    ) as engine:
        for _ in range(optimisation.steps):
            chosen = candidates[permit.entropy.poisson(terms.sampling_probability, len(candidates))]
            x, y = features.read(permit, allowance, chosen)
            units = engine.clipped_sum(torch.from_numpy(x), torch.from_numpy(y))
            released = noised_sum(
                units,
                clip_norm=terms.clip_norm,
                noise_multiplier=terms.noise_multiplier,
                entropy=permit.entropy,
            )
            engine.apply(released / (terms.sampling_probability * optimisation.divisor_size))
    update: NDArray[np.float32] = flatten(network) - before
    return update
