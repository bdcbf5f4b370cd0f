"""Data-free scores of untrained networks: they cost no epsilon, filter a pool, and are never the judge."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from fednas.errors import ConfigurationError
from fednas.space.architecture import Architecture
from fednas.space.cost import Cost
from fednas.space.layers import Network

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.SELU)
BATCH_SIZE = 32


def naswot(network: nn.Module, inputs: Tensor) -> float:
    """Score how differently a network's activations respond to different inputs.

    The code of an input is the signs of all outputs of ReLU, Tanh and SELU modules; the kernel counts on how
    many units two codes agree, and the score is its log-determinant. The identity is added to the kernel, so
    that networks with fewer units than inputs, whose kernel is singular, can be compared too.

    Args:
        network: any network; it is not changed.
        inputs: (batch, *input_shape); noise will do.

    Returns:
        Higher is better; 0 when there are no such activations, which is the least possible.

    Source: Mellor et al. (2021), 2006.04647.
    """
    codes: list[Tensor] = []

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        codes.append((output.detach() > 0).flatten(1).double())

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, ACTIVATIONS)]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not codes:
        return 0.0
    code = torch.cat(codes, dim=1)
    kernel = code @ code.T + (1.0 - code) @ (1.0 - code).T
    return float(torch.logdet(kernel + torch.eye(len(kernel), dtype=torch.float64)))


def synflow(network: Network, input_shape: tuple[int, ...]) -> float:
    """Score the synaptic flow through a network's trunk: how much its paths carry in total.

    Weights are replaced by their magnitudes, activations and norms by the identity, and ones are fed to the
    trunk: the score is the sum over parameters of parameter times gradient of the summed output.

    Args:
        network: built without gates; it is not changed.
        input_shape: shape of one record.

    Returns:
        The logarithm of the flow, higher is better; -inf when nothing flows.

    Source: Tanaka et al. (2020), 2006.05467.
    """
    with torch.no_grad():
        shape = network.stem(torch.zeros(1, *input_shape)).shape
    trunk = _linearised(copy.deepcopy(network.trunk)).double()
    parameters = list(trunk.parameters())
    if not parameters:
        return -math.inf
    with torch.no_grad():
        for parameter in parameters:
            parameter.abs_()
    total = trunk(torch.ones(shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    flow = sum(float((p.detach() * g).sum()) for p, g in zip(parameters, gradients) if g is not None)
    return math.log(flow) if flow > 0.0 else -math.inf


def rank_sum(
    candidates: Sequence[tuple[Network, Cost]],
    input_shape: tuple[int, ...],
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Add up the ranks by NASWOT on noise, by SynFlow and by multiply-accumulates.

    Every network is scored at fresh initial weights drawn from `generator`, so the result depends on nothing
    that was trained and on no global random state.

    Args:
        candidates: networks with their costs; the networks are not changed.
        input_shape: shape of one record.
        generator: draws the noise inputs and the initial weights.

    Returns:
        (num_candidates,), higher is better; ties share their mean rank.
    """
    noise = generator.standard_normal((BATCH_SIZE, *input_shape))
    inputs = torch.from_numpy(noise).float()
    seed = int(generator.integers(2**63))
    scores = []
    for network, cost in candidates:
        fresh = _initialised(network, seed)
        scores.append((naswot(fresh, inputs), synflow(fresh, input_shape), float(cost.macs)))
    ranks = [rankdata(column) for column in np.asarray(scores, dtype=np.float64).reshape(-1, 3).T]
    total: NDArray[np.float64] = np.sum(ranks, axis=0)
    return total


def shortlist(
    architectures: Sequence[Architecture],
    build: Callable[[Architecture], Network],
    measure: Callable[[Architecture], Cost],
    count: int,
    *,
    input_shape: tuple[int, ...],
    generator: np.random.Generator,
) -> list[Architecture]:
    """Keep a few of a pool, for free: three orders take turns, each with its best that is left.

    The first is the rank sum, which likes capacity; the second is the fewest parameters, since the noise of a
    private step grows with their square root and the rank sum is blind to it; the third is chance.

    Args:
        architectures: a pool, without repeats.
        build: makes the network of an architecture; its weights do not matter.
        measure: the cost of an architecture.
        count: how many to keep; all when the pool is smaller.
        input_shape: shape of one record.
        generator: public randomness for the scores and for chance.

    Returns:
        The kept architectures in the order they were taken.

    Raises:
        ConfigurationError: when `count` is negative.
    """
    if count < 0:
        raise ConfigurationError(f"expected {count=} >= 0")
    costs = [measure(architecture) for architecture in architectures]
    scores = rank_sum([(build(a), c) for a, c in zip(architectures, costs)], input_shape, generator)
    orders = (
        np.argsort(-scores, kind="stable"),
        np.argsort([cost.parameters for cost in costs], kind="stable"),
        generator.permutation(len(architectures)),
    )
    kept: dict[int, None] = {}
    for turn in range(min(count, len(architectures))):
        kept[next(int(i) for i in orders[turn % len(orders)] if int(i) not in kept)] = None
    return [architectures[i] for i in kept]


def _linearised(module: nn.Module) -> nn.Module:
    """Replace activations and norms inside a private copy by the identity."""
    if isinstance(module, (*ACTIVATIONS, nn.GroupNorm, nn.LayerNorm)):
        return nn.Identity()
    for name, child in module.named_children():
        setattr(module, name, _linearised(child))
    return module


def _initialised(network: Network, seed: int) -> Network:
    """Copy a network with fresh weights: He-normal matrices and kernels, ones for norms, zeros for biases."""
    fresh = copy.deepcopy(network)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(fresh.trunk.named_parameters()):
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, generator=random)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return fresh
