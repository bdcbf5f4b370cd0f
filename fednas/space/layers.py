"""Networks and blocks that are legal for per-example gradients: no batch statistics, nothing in place."""

from collections import OrderedDict
from typing import cast, final

import torch
from torch import Tensor, nn

from fednas.space.architecture import Architecture

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "selu": nn.SELU, "tanh": nn.Tanh}

# Groups of a fixed size, not a fixed number: a channel keeps its group in every width of a shared weight.
GROUP_SIZE = 4


@final
class Network(nn.Module):
    """A frozen stem, computed once per record, and the trunk that is trained.

    Args:
        stem: A module without parameters that maps each record by itself.
        stem_key: "identity" or like "scattering-j2"; stems with equal keys compute equal features.
        trunk: The trained part; the names of its parameters are the names of the shared weights.
    """

    def __init__(self, *, stem: nn.Module, stem_key: str, trunk: nn.Module) -> None:
        super().__init__()
        assert not list(stem.parameters()), "a stem is frozen: it has no parameters"
        self.stem = stem
        self.stem_key = stem_key
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """Map records (batch, *input_shape) to logits (batch, num_classes)."""
        return cast(Tensor, self.trunk(self.stem(x)))


@final
class Gate(nn.Module):
    """Multiplies a block's output by a scalar one, whose gradient says what the choice is worth.

    Args:
        choice_name: The full name of the choice whose selected option shapes the block.
    """

    scale: Tensor

    def __init__(self, choice_name: str) -> None:
        super().__init__()
        self.choice_name = choice_name
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `scale * x`."""
        return x * self.scale


def gate(gated: bool, *choice_names: str) -> nn.Sequential:
    """Make the gates of several choices on one output, or nothing at all.

    Args:
        gated: False gives the identity.
        choice_names: Full names of the choices.

    Returns:
        A sequence of gates, empty unless gated.
    """
    return nn.Sequential(*[Gate(name) for name in choice_names if gated])


def gates(network: Network) -> dict[str, str]:
    """Find the gates of a network.

    Args:
        network: A network, built gated or not.

    Returns:
        The full name of the `scale` buffer in `network.trunk` by choice name; empty when built without gates.
    """
    found: dict[str, str] = {}
    for name, module in network.trunk.named_modules():
        if isinstance(module, Gate):
            assert module.choice_name not in found, f"two gates for {module.choice_name}"
            found[module.choice_name] = f"{name}.scale"
    return found


def integer(architecture: Architecture, name: str) -> int:
    """Read a whole-number choice."""
    value = architecture[name]
    assert isinstance(value, int)
    return value


def activation(architecture: Architecture) -> nn.Module:
    """Make the architecture's activation: "relu", "selu" or "tanh"."""
    return ACTIVATIONS[str(architecture["activation"])]()


def norm(kind: str, channels: int) -> nn.Module:
    """Make a normalisation over groups of four channels of each record, or none.

    Args:
        kind: "group" or "none".
        channels: The number of channels; a remainder that four does not divide gives smaller equal groups.

    Returns:
        The module.
    """
    if kind == "none":
        return nn.Identity()
    assert kind == "group", kind
    size = next(size for size in (GROUP_SIZE, 2, 1) if channels % size == 0)
    return nn.GroupNorm(channels // size, channels)


@final
class Widen(nn.Module):
    """Changes the number of channels without parameters: a prefix, or zeros behind.

    Args:
        source: The number of incoming channels.
        target: The number of outgoing channels.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source = source
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, source, ...) to (batch, target, ...)."""
        if self.target <= self.source:
            return x[:, : self.target]
        missing = x.new_zeros((x.shape[0], self.target - self.source, *x.shape[2:]))
        return torch.cat([x, missing], dim=1)


def grid_window(side: int, grid: int) -> tuple[int, int]:
    """Compute the window and stride of a pooling from `side` to `grid` cells that sees every position.

    Args:
        side: The incoming length, at least `grid`.
        grid: The outgoing length, at least 1.

    Returns:
        The window and the stride, in positions.
    """
    assert 1 <= grid <= side, (grid, side)
    stride = side // grid
    return side - (grid - 1) * stride, stride


@final
class ConvUnit(nn.Module):
    """A convolution that keeps the size (up to its stride), a normalisation and an activation.

    Args:
        dims: 1 for signals, 2 for images.
        source: The number of incoming channels.
        target: The number of outgoing channels.
        kernel: The odd length of the kernel on each axis, in positions.
        norm_kind: "group" or "none".
        act: The activation; `nn.Identity()` for a linear unit.
        stride: Positions between outputs; the outgoing side is the incoming one divided by it, rounded up.
        dilation: Positions between the kernel's taps.
        depthwise: True filters each channel by itself.
    """

    def __init__(
        self,
        dims: int,
        source: int,
        target: int,
        kernel: int,
        *,
        norm_kind: str,
        act: nn.Module,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        assert kernel % 2 == 1, kernel
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        self.conv = convolution(
            source,
            target,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=source if depthwise else 1,
        )
        self.norm = norm(norm_kind, target)
        self.activation = act

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, source, *sides) to (batch, target, *sides / stride)."""
        return cast(Tensor, self.activation(self.norm(self.conv(x))))


@final
class Residual(nn.Module):
    """The sum of a parameter-free shortcut and a branch, or the shortcut alone, then gates.

    A scaled input always reaches the output through the shortcut, so a normalisation never hides a gate.

    Args:
        shortcut: Brings the input to the shape of the branch's output.
        branch: The operator by its kind, which names its weights; empty for "skip".
        gates: What `gate` made.
    """

    def __init__(self, shortcut: nn.Module, branch: dict[str, nn.Module], gates: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.branch = nn.ModuleDict(branch)
        self.gate = gates

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, source, *sides) to (batch, target, *sides / stride)."""
        y = self.shortcut(x)
        for operator in self.branch.values():
            y = y + operator(x)
        return cast(Tensor, self.gate(y))


@final
class Head(nn.Module):
    """Flatten, an optional hidden layer, and the logits; each named by what it reads.

    Args:
        key: Names the layout of the features; other layouts get other weights.
        features: The number of incoming values of a record.
        num_classes: The number of logits.
        hidden: The hidden layer's width; 0 for none.
        act: The hidden layer's activation.
        gates: What `gate` made, for the hidden layer's output.
    """

    def __init__(
        self,
        key: str,
        features: int,
        num_classes: int,
        *,
        hidden: int = 0,
        act: nn.Module | None = None,
        gates: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        if hidden:
            assert act is not None
            assert gates is not None
            layers[f"hidden_{key}"] = nn.Linear(features, hidden)
            layers["activation"] = act
            layers["gate"] = gates
            layers["output"] = nn.Linear(hidden, num_classes)
        else:
            layers[f"output_{key}"] = nn.Linear(features, num_classes)
        self.layers = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ...) to (batch, num_classes)."""
        return cast(Tensor, self.layers(x))
