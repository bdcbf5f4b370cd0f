"""Clipped gradient sums of one materialised sub-network: the protocol, and the engine from Opacus."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn


class ClippedSum(Protocol):
    """The one private quantity of DP-SGD: a sum over records of gradients clipped jointly to one norm."""

    def clipped_sum(self, x: Tensor, y: Tensor) -> NDArray[np.float64]:
        """Sum the clipped per-record gradients of the cross-entropy loss.

        Args:
            x: shape (batch, ...), float32; the batch may be empty.
            y: shape (batch,), int64.

        Returns:
            Shape (d,), in the order of the module's parameters sorted by name.

        Guarantees:
            - Adding or removing one record moves the result by at most the clip norm in L2, up to rounding.
            - A record whose gradient is not finite, or too long for float32, contributes zero.
            - An empty batch gives zeros.
        """
        ...

    def apply(self, gradient: NDArray[np.float64]) -> None:
        """Take one optimizer step along a released gradient of shape (d,)."""
        ...


@final
class OpacusEngine:
    """Per-record gradients from `GradSampleModule`, clipped by `DPOptimizer`; the noise comes from elsewhere.

    `make_private` is never called: it would derive sampling rate and divisor from the number of records.

    Args:
        module: trained in place; every parameter must take part in the forward pass, or Opacus raises.
        clip_norm: L2 bound of one record's gradient over all parameters together.
        learning_rate: of plain SGD.
        momentum: of plain SGD; its buffer lives as long as the engine.
        micro_batch: records whose gradients are held in memory at once.
    """

    def __init__(
        self, module: nn.Module, *, clip_norm: float, learning_rate: float, momentum: float, micro_batch: int
    ) -> None:
        self._module = GradSampleModule(module, loss_reduction="sum")
        self._parameters = [p for _, p in sorted(module.named_parameters())]
        self._micro_batch = micro_batch
        self._optimizer = DPOptimizer(
            torch.optim.SGD(self._parameters, lr=learning_rate, momentum=momentum),
            noise_multiplier=0.0,  # the integer grid adds the noise; here is only clipping and summing
            max_grad_norm=clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def clipped_sum(self, x: Tensor, y: Tensor) -> NDArray[np.float64]:
        """See `ClippedSum.clipped_sum`."""
        total = np.zeros(sum(p.numel() for p in self._parameters), dtype=np.float64)
        for start in range(0, len(x), self._micro_batch):
            chunk = slice(start, start + self._micro_batch)
            loss = nn.functional.cross_entropy(self._module(x[chunk]), y[chunk], reduction="sum")
            with warnings.catch_warnings():
                # Opacus hooks every layer; the first one's input needs no gradient, which is no mistake.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                loss.backward()  # type: ignore[no-untyped-call]
            part = self._clip()
            # A value that is not finite makes the sum so, unless its record was clipped to nothing.
            if not bool(part.isfinite().all()):
                _mask_non_finite(self._parameters)
                part = self._clip()
            total += part.double().numpy()
            self._optimizer.zero_grad(set_to_none=True)
        return total

    def _clip(self) -> Tensor:
        for parameter in self._parameters:
            parameter.summed_grad = None  # type: ignore[attr-defined]
        self._optimizer.clip_and_accumulate()
        return torch.cat([p.summed_grad.reshape(-1) for p in self._parameters])  # type: ignore[attr-defined]

    def apply(self, gradient: NDArray[np.float64]) -> None:
        """See `ClippedSum.apply`."""
        flat = torch.from_numpy(gradient).float()
        parts = torch.split(flat, [p.numel() for p in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape)
        self._optimizer.original_optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take the hooks and all that they left off, so that the module is a plain one again."""
        self._module.remove_hooks()
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


def _mask_non_finite(parameters: list[nn.Parameter]) -> None:
    """Zero the whole gradient of every record that has a value which is not finite, in any parameter."""
    samples: list[Tensor] = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
    finite = torch.stack([g.reshape(len(g), -1).isfinite().all(dim=1) for g in samples]).all(dim=0)
    for parameter, sample in zip(parameters, samples, strict=True):
        kept = finite.reshape(-1, *[1] * (sample.dim() - 1))
        parameter.grad_sample = torch.where(kept, sample, 0.0)  # type: ignore[attr-defined]
