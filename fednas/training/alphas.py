"""The private gradient of the architecture parameters: first order, one path a step."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fednas.privacy.grid import noised_sum
from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network, gates
from fednas.supernet.features import stem_features


def architecture_gradient(
    network: Network,
    records: StreamedRecords,
    permit: Permit,
    *,
    jacobian: dict[str, NDArray[np.float64]],
    divisor_size: float,
    micro_batch: int,
) -> NDArray[np.float64]:
    """One clipped, noised gradient of the loss with respect to the logits of the choices on a path.

    Each choice on the path multiplies the output of the block it shapes by a gate of value one; the
    derivative of the loss by the gate, times the derivative of the choice's probability by its logits, is the
    first-order gradient (Liu et al. 2019 DARTS, 1806.09055; one sampled path a step as in Dong & Yang 2019,
    1910.04465).

    Args:
        network: a gated sub-network; its weights are not changed.
        records: the site's records.
        permit: charged to the plan's allowance ``alphas`` for one step.
        jacobian: for each choice on the path, the derivative of the chosen option's probability by the
            choice's logits.
        divisor_size: declared size of the architecture stream.
        micro_batch: records held in memory at once.

    Returns:
        Shape (p,), float64: the averages for the choices of ``jacobian``, sorted by name and concatenated.

    Guarantees:
        - A record's gradient over all logits together is clipped to the allowance's clip norm before anything
          is summed.
        - Only the architecture stream is read; the path was drawn from public randomness before.
        - Only coordinates of choices on the path are released.
    """
    terms = permit.allowance("alphas")
    features = stem_features(network, records, permit)
    candidates = features.indices(permit, "alphas")
    chosen = candidates[permit.entropy.poisson(terms.sampling_probability, len(candidates))]
    names = sorted(jacobian)
    total = np.zeros(sum(jacobian[name].size for name in names), dtype=np.float64)
    for start in range(0, len(chosen), micro_batch):
        x, y = features.read(permit, "alphas", chosen[start : start + micro_batch])
        slopes = _gate_gradients(network, torch.from_numpy(x), torch.from_numpy(y))
        rows = np.concatenate([slopes[name][:, None] * jacobian[name] for name in names], axis=1)
        total += _clip(rows, terms.clip_norm).sum(axis=0)
    released = noised_sum(
        total, clip_norm=terms.clip_norm, noise_multiplier=terms.noise_multiplier, entropy=permit.entropy
    )
    average: NDArray[np.float64] = released / (terms.sampling_probability * divisor_size)
    return average


def _clip(rows: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Mask rows that are not finite, then scale each to a norm of at most ``clip_norm``."""
    rows = np.where(np.isfinite(rows).all(axis=1, keepdims=True), rows, 0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped: NDArray[np.float64] = rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-12))
    return clipped


def _gate_gradients(network: Network, x: Tensor, y: Tensor) -> dict[str, NDArray[np.float64]]:
    """The derivative of each record's loss by each gate: shape (batch,) for every choice."""
    trunk = network.trunk
    fixed = {name: p.detach() for name, p in trunk.named_parameters()}
    places = gates(network)
    buffers = dict(trunk.named_buffers())
    values = {choice: buffers[name] for choice, name in places.items()}

    def loss(scales: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        state = fixed | {places[choice]: scale for choice, scale in scales.items()}
        logits: Tensor = functional_call(trunk, state, (record[None],))
        return nn.functional.cross_entropy(logits, label[None], reduction="sum")

    slopes = vmap(grad(loss), in_dims=(None, 0, 0))(values, x, y)
    return {choice: slope.reshape(len(x)).double().numpy() for choice, slope in slopes.items()}
