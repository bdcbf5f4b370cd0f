"""What a network costs a device, computed on tensors without data: parameters, work, memory, traffic."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fednas.space.architecture import Architecture
from fednas.space.layers import Network
from fednas.space.search_space import SearchSpace


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


@lru_cache(maxsize=1 << 13)  # 2 kB each, with the architecture
def cost_of(space: SearchSpace, architecture: Architecture, *, micro_batch: int) -> Cost:
    """The cost of an architecture of a space, measured once a process.

    Args:
        space: As `fednas.space.create` made it.
        architecture: In the space.
        micro_batch: How many records' gradients are held at once.
    """
    return measure(space.build(architecture), space.input_shape, micro_batch=micro_batch)


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
    stem = _stem_usage(_Stem(key=network.stem_key, input_shape=input_shape, module=network.stem))
    trunk = _usage(network.trunk, stem.output_shape)
    constants = sum(_bytes(tensor) for tensor in [*network.parameters(), *network.buffers()])
    parameters = sum(parameter.numel() for parameter in network.trunk.parameters())
    weights = 4 * parameters
    return Cost(
        parameters=parameters,
        macs=stem.macs + trunk.macs,
        peak_bytes=constants + stem.input_bytes + max(stem.peak_bytes, stem.output_bytes + trunk.peak_bytes),
        training_bytes=4 * weights + micro_batch * (weights + trunk.allocated_bytes),
        upload_bytes=weights,
    )


@dataclass(frozen=True, kw_only=True)
class _Usage:
    macs: int
    input_bytes: int
    allocated_bytes: int
    peak_bytes: int
    output_bytes: int  # 0 when the output is the input
    output_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Stem:
    """A stem is the function that its key names, so two with the same key and shape cost the same."""

    key: str
    input_shape: tuple[int, ...]
    module: nn.Module = field(compare=False)


@lru_cache(maxsize=32)
def _stem_usage(stem: _Stem) -> _Usage:
    return _usage(stem.module, stem.input_shape)


def _usage(module: nn.Module, input_shape: tuple[int, ...]) -> _Usage:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    record = torch.empty((1, *input_shape), device="meta")
    meter = _Meter()
    with torch.no_grad(), meter:
        output = functional_call(module, state, (record,))
    assert isinstance(output, Tensor)
    return _Usage(
        macs=meter.flops // 2,
        input_bytes=_bytes(record),
        allocated_bytes=meter.allocated_bytes,
        peak_bytes=meter.peak_bytes,
        output_bytes=0 if _key(output) == _key(record) else _bytes(output),
        output_shape=tuple(output.shape[1:]),
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@final
class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the work of operations and the storages they create, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.allocated_bytes = 0
        self.peak_bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._live = {key: entry for key, entry in self._live.items() if not _expired(entry[0])}
        known = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)} | set(
            self._live
        )
        output = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=output)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and _key(leaf) not in known:
                size = leaf.untyped_storage().nbytes()
                self._live[_key(leaf)] = (_reference(leaf), size)
                self.allocated_bytes += size
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return output


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _expired(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]
