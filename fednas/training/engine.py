"""Clipped gradient sums of one materialised sub-network: the protocol, and the engine from Opacus."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from torch import Tensor, nn

from fednas.privacy.grid import GridSum
from fednas.supernet.chunks import aligned, chunks, steady_rows

_BLOCK = 1 << 18  # numbers at once on their way to the grid: bounds the second copy of gradients


class ClippedSum(Protocol):
    """The one private quantity of DP-SGD: a sum over records of gradients clipped jointly to one norm."""

    def clipped_sum(self, x: Tensor, y: Tensor) -> NDArray[np.int64]:
        """Sum the clipped per-record gradients of the cross-entropy loss.

        Args:
            x: shape (batch, ...), float32; the batch may be empty.
            y: shape (batch,), int64.

        Returns:
            Shape (d,), int64 in grid units, in the order of the module's parameters sorted by name.

        Guarantees:
            - Adding or removing one record moves the result by at most ``sensitivity(d)`` in L2.
            - A record whose gradient is not finite contributes zero.
            - An empty batch gives zeros.
        """
        ...

    def apply(self, gradient: NDArray[np.float64]) -> None:
        """Take one optimizer step along a released gradient of shape (d,)."""
        ...


@final
class OpacusEngine:
    """Per-record gradients from `GradSampleModule`, clipped and summed by `GridSum`; it adds no noise.

    `make_private` is never called: it would derive sampling rate and divisor from the number of records. Nor
    is `DPOptimizer` used: its float32 clip overshoots the bound by 1.2e-6, it sums floats in an order that
    depends on the batch, and its noise is not ours. A step is that of a plain optimizer.

    Args:
        module: trained in place; every parameter must take part in the forward pass, or the sum raises.
        clip_norm: L2 bound of one record's gradient over all parameters together.
        learning_rate: of plain SGD.
        momentum: of plain SGD; its buffer lives as long as the engine.
        micro_batch: rows of a chunk, whose gradients are held in memory at once; chosen without counting.

    Guarantees:
        - What a record adds is the same bits whatever the other records, their number and its place are: the
          network sees chunks of one shape only, and single records where that was seen not to be enough.
    """

    def __init__(
        self, module: nn.Module, *, clip_norm: float, learning_rate: float, momentum: float, micro_batch: int
    ) -> None:
        self._hooks = ExitStack()
        self._hooks.enter_context(aligned(module))
        self._module = GradSampleModule(module, loss_reduction="sum")
        self._parameters = [p for _, p in sorted(module.named_parameters())]
        self._clip_norm = clip_norm
        self._micro_batch = micro_batch
        self._chunk: int | None = None
        self._optimizer = torch.optim.SGD(self._parameters, lr=learning_rate, momentum=momentum)

    def clipped_sum(self, x: Tensor, y: Tensor) -> NDArray[np.int64]:
        """See `ClippedSum.clipped_sum`."""
        if self._chunk is None:
            self._chunk = steady_rows(self._gradients, tuple(x.shape[1:]), self._micro_batch)
        total = GridSum(sum(p.numel() for p in self._parameters), clip_norm=self._clip_norm)
        for rows, labels, number in chunks(x, y, self._chunk):
            gradients = [g.reshape(len(g), -1) for g in self._gradients(rows, labels)]
            step = max(1, _BLOCK // max(1, sum(g.shape[1] for g in gradients)))
            for start in range(0, number, step):
                part = slice(start, min(start + step, number))
                total.add(torch.cat([g[part] for g in gradients], dim=1).numpy())
        return total.units

    def _gradients(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Each record's gradient, shape (batch, ...) for every parameter."""
        loss = nn.functional.cross_entropy(self._module(x), y, reduction="sum")
        with warnings.catch_warnings():
            # Opacus hooks every layer; the first one's input needs no gradient, which is no mistake.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = []
        for parameter in self._parameters:
            gradient = parameter.grad_sample  # type: ignore[attr-defined]
            if gradient is None or len(gradient) != len(x):
                raise ValueError(
                    "a parameter has no gradient of every record; train only what the loss reads"
                )
            gradients.append(gradient)
            parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        return gradients

    def apply(self, gradient: NDArray[np.float64]) -> None:
        """See `ClippedSum.apply`."""
        flat = torch.from_numpy(gradient).float()
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take the hooks and all that they left off, so that the module is a plain one again."""
        self._module.remove_hooks()
        self._hooks.close()
        for parameter in self._parameters:
            for name in ("grad_sample", "summed_grad", "_current_grad_sample", "_forward_counter"):
                parameter.__dict__.pop(name, None)
        for module in self._module.modules():
            for name in ("activations", "max_batch_len"):
                module.__dict__.pop(name, None)


@contextmanager
def opacus_engine(
    module: nn.Module, *, clip_norm: float, learning_rate: float, momentum: float, micro_batch: int
) -> Iterator[OpacusEngine]:
    """An `OpacusEngine` whose hooks are gone when the block ends."""
    engine = OpacusEngine(
        module,
        clip_norm=clip_norm,
        learning_rate=learning_rate,
        momentum=momentum,
        micro_batch=micro_batch,
    )
    try:
        yield engine
    finally:
        engine.close()
