"""What a network costs a device, computed on tensors without data: parameters, work, memory, traffic."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fednas.space.layers import Network


@final
@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one network; a function of its shapes alone, never of data.

    Args:
        parameters: The number of trained parameters.
        macs: Multiply-accumulate operations of one prediction, the frozen stem included.
        peak_bytes: Memory of one prediction: weights, constants and the most activations alive at once.
        training_bytes: Memory of a differentially private step, see `measure`.
        upload_bytes: Bytes of one uploaded update, in float32.
    """

    parameters: int
    macs: int
    peak_bytes: int
    training_bytes: int
    upload_bytes: int


def measure(network: Network, input_shape: tuple[int, ...], *, micro_batch: int) -> Cost:
    """Measure a network on the meta device, where shapes exist and values do not.

    The training memory counts weights, update, momentum and summed gradient of the trunk, and for each record
    of a micro-batch its own gradient and all activations of the trunk; stem features are cached outside.

    Args:
        network: The network; it is left untouched.
        input_shape: The shape of one record, without the batch.
        micro_batch: How many records' gradients are held at once.

    Returns:
        The cost.
    """
    record = torch.empty((1, *input_shape), device="meta")
    memory = _LiveMemory()
    stem, trunk = _shapes(network.stem), _shapes(network.trunk)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, memory:
        features = functional_call(network.stem, stem, (record,))
        before = memory.allocated
        functional_call(network.trunk, trunk, (features,))
    activations = memory.allocated - before
    constants = sum(_bytes(tensor) for tensor in [*network.parameters(), *network.buffers()])
    parameters = sum(parameter.numel() for parameter in network.trunk.parameters())
    weights = 4 * parameters
    return Cost(
        parameters=parameters,
        macs=flops.get_total_flops() // 2,
        peak_bytes=constants + _bytes(record) + memory.peak,
        training_bytes=4 * weights + micro_batch * (weights + activations),
        upload_bytes=weights,
    )


def _shapes(module: nn.Module) -> dict[str, Tensor]:
    state = [*module.named_parameters(), *module.named_buffers()]
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in state}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@final
class _LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations create, and the most that are alive at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated = 0
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._live = {key: entry for key, entry in self._live.items() if not _expired(entry[0])}
        inputs = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._live and _key(leaf) not in inputs:
                size = leaf.untyped_storage().nbytes()
                self._live[_key(leaf)] = (_reference(leaf), size)
                self.allocated += size
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return output


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _expired(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]
