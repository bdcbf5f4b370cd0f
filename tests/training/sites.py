"""Small networks, records and plans that the tests of private training share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fednas.privacy.allowance import READS, Allowance
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Event, Gaussian, NonPrivate, PoissonGaussian
from fednas.privacy.ledger import Arrays, Operation, Permit, PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.streams import StreamedRecords
from fednas.space import Architecture, SearchSpace, Value, create
from fednas.space.layers import Network

torch.set_num_threads(1)

NUM_CLASSES = 3
SHARES = (("weights", 0.5), ("architecture", 0.25), ("fitness", 0.25))

MLP = create("mlp", (5,), NUM_CLASSES)
CONV = create("conv", (1, 8, 8), NUM_CLASSES)
CONV1D = create("conv1d", (2, 16), NUM_CLASSES)
SPACES = {"mlp": MLP, "conv": CONV, "conv1d": CONV1D}

_STAGES: dict[str, Value] = {
    "activation": "tanh",
    "norm": "group",
    "entry.width": 8,
    "stages": 1,
    "stages.0.width": 16,
    "stages.0.blocks": 2,
    "stages.0.blocks.0.kind": "separable",
    "stages.0.blocks.0.kernel": 3,
    "stages.0.blocks.0.expansion": 2,
    "stages.0.blocks.1.kind": "plain",
    "stages.0.blocks.1.kernel": 5,
    "pool": 2,
}
_SIGNAL: dict[str, Value] = {
    "activation": "selu",
    "norm": "group",
    "width": 8,
    "entry.kernel": 5,
    "blocks": 2,
    "blocks.0.kind": "separable",
    "blocks.0.kernel": 3,
    "blocks.0.dilation": 2,
    "blocks.1.kind": "plain",
    "blocks.1.kernel": 3,
    "blocks.1.dilation": 1,
    "pool": "max",
    "bins": 2,
}
CHOSEN: dict[str, Architecture] = {
    "mlp-small": MLP.smallest(),
    "mlp-residual": Architecture.of(
        "mlp",
        {
            "activation": "tanh",
            "depth": 3,
            "residual": True,
            "layers.0.width": 32,
            "layers.1.width": 16,
            "layers.2.width": 32,
        },
    ),
    "conv-scattering": CONV.smallest(),
    "conv-scattering-stages": Architecture.of("conv", {**_STAGES, "stem": "scattering", "body": "conv"}),
    "conv-trained": Architecture.of("conv", {**_STAGES, "stem": "conv", "entry.kernel": 3}),
    "conv1d-spectrum": CONV1D.smallest(),
    "conv1d-spectrum-mlp": Architecture.of(
        "conv1d", {"stem": "spectrum", "body": "mlp", "hidden": 16, "activation": "relu"}
    ),
    "conv1d-trained": Architecture.of("conv1d", {**_SIGNAL, "stem": "conv"}),
}


def built(architecture: Architecture, *, seed: int = 0, gated: bool = False) -> Network:
    """The network of an architecture, with weights from a public seed."""
    torch.manual_seed(seed)
    return SPACES[architecture.space].build(architecture, gated=gated)


def drawn(space: SearchSpace, number: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Records of a space: normal features, uniform labels; the first n are the same for every number >= n."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((4 * number, *space.input_shape)).astype(np.float32)[:number]
    return x, np.arange(number, dtype=np.int64) * 7 % space.num_classes


def trunk_batch(network: Network, space: SearchSpace, number: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Records as a trunk sees them."""
    x, y = drawn(space, number, seed=seed)
    with torch.no_grad():
        return network.stem(torch.from_numpy(x)), torch.from_numpy(y)


def record_gradients(module: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Slow: each record's gradient by itself, shape (batch, d), parameters in the order of their names."""
    parameters = [p for _, p in sorted(module.named_parameters())]
    rows = []
    for record, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(module(record[None]), label[None])
        parts = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.array(rows).reshape(len(x), sum(p.numel() for p in parameters))


def clipped(rows: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Slow: each record's vector scaled to a norm of at most the bound; zero when it is not finite."""
    result = np.zeros_like(rows)
    for i, row in enumerate(rows):
        if np.isfinite(row).all():
            result[i] = row * min(1.0, clip_norm / (float(np.linalg.norm(row)) + 1e-6))
    return result


def streams_of(number: int) -> NDArray[np.uint8]:
    """Streams by a fixed pattern: of eight records four weights, two architecture, two fitness."""
    return np.array([0, 1, 0, 2] * number, dtype=np.uint8)[:number]


def records_of(x: NDArray[np.float32], y: NDArray[np.int64]) -> StreamedRecords:
    return StreamedRecords(x, y, streams_of(len(x)))


def plan_of(*, clip_norm: float = 1.0, alphas_clip_norm: float = 1.0, **events: Event) -> PrivacyPlan:
    """A plan with the given events, without any calibration."""
    private = not any(isinstance(event, NonPrivate) for event in events.values())
    clips = {"alphas": alphas_clip_norm, "fitness": 1.0}
    return PrivacyPlan(
        budget=PrivacyBudget(epsilon=1e3, delta=1e-5) if private else PrivacyBudget.non_private(),
        proportions=SHARES,
        allowances=tuple(
            Allowance(
                name=name, streams=READS[name], event=events[name], clip_norm=clips.get(name, clip_norm)
            )
            for name in READS
            if name in events
        ),
    )


def open_plan(*, clip_norm: float = 1.0, alphas_clip_norm: float = 1.0, q: float = 1.0) -> PrivacyPlan:
    """A plan of everything without noise."""
    bare = NonPrivate(reason="a test", sampling_probability=q, releases=10_000)
    counts = NonPrivate(reason="a test", releases=10_000)
    return plan_of(
        clip_norm=clip_norm,
        alphas_clip_norm=alphas_clip_norm,
        search=bare,
        alphas=bare,
        fitness=counts,
        final=bare,
    )


def noisy_plan(sigma: float, *, q: float = 0.5, clip_norm: float = 1.0) -> PrivacyPlan:
    """A plan of everything with one noise multiplier."""
    event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=10_000)
    counts = Gaussian(noise_multiplier=sigma, releases=10_000)
    return plan_of(clip_norm=clip_norm, search=event, alphas=event, fitness=counts, final=event)


def released(
    folder: Path,
    plan: PrivacyPlan,
    charges: dict[str, int],
    mechanism: Callable[[Permit], Arrays],
    *,
    test_seed: int | None = 5,
    number: int = 1,
) -> Arrays:
    """What a real ledger releases of a mechanism; a second call in the same folder repeats nothing."""
    private = all(not isinstance(a.event, NonPrivate) for a in plan.allowances)
    cap = PrivacyBudget(epsilon=1e6, delta=1e-5) if private else PrivacyBudget.non_private()
    folder.mkdir(parents=True, exist_ok=True)
    with PrivacyLedger.open(folder / "ledger", dataset="ward", cap=cap, test_seed=test_seed) as ledger:
        ledger.open_plan("run", plan)
        operation = Operation(run="run", round=number, kind="train", nonce="nonce", digest="0" * 64)
        return ledger.release(operation, charges=charges, mechanism=mechanism).value
