"""The space for tables: one to four layers, their widths, the activation and residual connections."""

from functools import partial
from typing import cast, final

from torch import Tensor, nn

from fednas.space.architecture import Architecture
from fednas.space.layers import Network, Widen, activation, gate, integer
from fednas.space.search_space import Node, SearchSpace, choice, node

_WIDTHS = (16, 32, 64, 128)
_MAX_DEPTH = 4


def space(input_shape: tuple[int, ...], num_classes: int) -> SearchSpace:
    """Make the multi-layer perceptron space.

    Args:
        input_shape: The shape of one record; it is flattened.
        num_classes: The number of logits.

    Returns:
        The space; the smallest network has one layer of width 16, the largest four of width 128.
    """
    tree = node(
        choice("activation", "relu", "tanh", "selu", nested=True),
        choice("depth", *[(depth, _layers(depth)) for depth in range(1, _MAX_DEPTH + 1)]),
    )
    return SearchSpace(
        name="mlp",
        tree=tree,
        input_shape=input_shape,
        num_classes=num_classes,
        builder=partial(_build, input_shape, num_classes),
    )


def _layers(depth: int) -> Node:
    widths = [choice(f"layers.{index}.width", *_WIDTHS, nested=True) for index in range(depth)]
    return node(*widths, choice("residual", False, True, nested=True)) if depth > 1 else node(*widths)


def _build(
    input_shape: tuple[int, ...], num_classes: int, architecture: Architecture, gated: bool
) -> Network:
    trunk = _Trunk(input_shape, num_classes, architecture, gated)
    return Network(stem=nn.Identity(), stem_key="identity", trunk=trunk)


@final
class _Layer(nn.Module):
    def __init__(self, source: int, target: int, act: nn.Module, residual: bool, gates: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(source, target)
        self.activation = act
        self.shortcut = Widen(source, target) if residual else None
        self.gate = gates

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.activation(self.linear(x)))
        return cast(Tensor, y if self.shortcut is None else self.shortcut(x) + y)


@final
class _Trunk(nn.Module):
    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, architecture: Architecture, gated: bool
    ) -> None:
        super().__init__()
        depth = integer(architecture, "depth")
        residual = depth > 1 and bool(architecture["residual"])
        self.flatten = nn.Flatten()
        self.layers = nn.ModuleList()
        width = 1
        for size in input_shape:
            width *= size
        for index in range(depth):
            source, width = width, integer(architecture, f"layers.{index}.width")
            names = [f"layers.{index}.width"]
            if index == depth - 1:
                names += ["activation", "depth"] + ["residual"] * (depth > 1)
            act = activation(architecture)
            self.layers.append(_Layer(source, width, act, residual and index > 0, gate(gated, *names)))
        # One output layer per depth: what the last layer means depends on how many came before.
        self.outputs = nn.ModuleDict({str(depth): nn.Linear(width, num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(x)
        for layer in self.layers:
            x = layer(x)
        for output in self.outputs.values():
            x = output(x)
        return x
