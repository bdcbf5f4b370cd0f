"""The private gradient of the architecture parameters: first order, one path a step."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fednas.privacy.grid import GridSum, noised_sum
from fednas.privacy.ledger import Permit
from fednas.privacy.streams import StreamedRecords
from fednas.space.layers import Network, gates
from fednas.supernet.chunks import aligned, chunks, steady_rows, suggested_rows
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
        - A record's gradient over all logits together is clipped to the allowance's clip norm and rounded to
          the grid before anything is summed; it depends on that record alone.
        - Only the architecture stream is read; the path was drawn from public randomness before.
        - Only coordinates of choices on the path are released.
    """
    terms = permit.allowance("alphas")
    features = stem_features(network, records, permit)
    candidates = features.indices(permit, "alphas")
    chosen = candidates[permit.entropy.poisson(terms.sampling_probability, len(candidates))]
    names = sorted(jacobian)
    total = GridSum(sum(jacobian[name].size for name in names), clip_norm=terms.clip_norm)

    def slopes(x: Tensor, y: Tensor) -> list[Tensor]:
        found = _gate_gradients(network, x, y)
        return [found[name] for name in names]

    with aligned(network.trunk):
        limit = suggested_rows(terms.sampling_probability * divisor_size, micro_batch)
        size = steady_rows(slopes, features.record_shape, limit)
        x, y = features.read(permit, "alphas", chosen)
        for rows, labels, number in chunks(torch.from_numpy(x), torch.from_numpy(y), size):
            columns = [slope[:number, None].double().numpy() for slope in slopes(rows, labels)]
            parts = [column * jacobian[name] for column, name in zip(columns, names, strict=True)]
            # Nothing may hang on whether there is a record, not even an error on a path without a gate.
            total.add(np.concatenate([np.zeros((number, 0)), *parts], axis=1))
    released = noised_sum(
        total.units,
        clip_norm=terms.clip_norm,
        noise_multiplier=terms.noise_multiplier,
        entropy=permit.entropy,
    )
    average: NDArray[np.float64] = released / (terms.sampling_probability * divisor_size)
    return average


def _gate_gradients(network: Network, x: Tensor, y: Tensor) -> dict[str, Tensor]:
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
    return {choice: slope.reshape(len(x)) for choice, slope in slopes.items()}
