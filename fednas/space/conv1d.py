"""The space for signals: a frozen spectral stem or a trained convolution, then a linear head or blocks."""

from collections import OrderedDict
from functools import partial
from typing import cast, final

from torch import Tensor, nn

from fednas.errors import ConfigurationError
from fednas.space.architecture import Architecture
from fednas.space.layers import ConvUnit, Head, Network, Residual, activation, gate, grid_window, integer
from fednas.space.search_space import SearchSpace, choice, node, repeat
from fednas.space.spectrum import Spectrum

_ACTIVATIONS = ("relu", "tanh", "selu")
_MIN_LENGTH = 8


def space(input_shape: tuple[int, ...], num_classes: int) -> SearchSpace:
    """Make the space for signals.

    Args:
        input_shape: (channels, length) of one record, at least 8 samples long.
        num_classes: The number of logits.

    Returns:
        The space; the smallest network is a linear layer on spectral features.

    Raises:
        ConfigurationError: The shape is not that of a signal, or too short.
    """
    if len(input_shape) != 2 or input_shape[1] < _MIN_LENGTH:
        raise ConfigurationError(
            f"the conv1d space needs signals (channels, length) of at least {_MIN_LENGTH} samples, "
            f"got {input_shape}; use mlp for tables and conv for images"
        )
    shape = (input_shape[0], input_shape[1])
    acts = choice("activation", *_ACTIVATIONS, nested=True)
    body = choice("body", "linear", ("mlp", node(choice("hidden", 16, 32, 64, nested=True), acts)))
    filters = node(
        choice("kernel", 3, 5, 9, 15, nested=True),
        choice("dilation", 1, 2, 4, nested=True),
    )
    bins = choice("bins", 1, 2, 4)
    trained = node(
        acts,
        choice("norm", "none", "group", nested=True),
        choice("width", 8, 16, 32, nested=True),
        choice("entry.kernel", 3, 5, 9, 15, nested=True),
        repeat("blocks", (0, 1, 2, 3), choice("kind", "skip", ("separable", filters), ("plain", filters))),
        choice("pool", ("average", bins), ("max", bins)),
    )
    return SearchSpace(
        name="conv1d",
        tree=node(choice("stem", ("spectrum", body), ("conv", trained))),
        input_shape=input_shape,
        num_classes=num_classes,
        builder=partial(_build, shape, num_classes),
    )


def _build(
    input_shape: tuple[int, int], num_classes: int, architecture: Architecture, gated: bool
) -> Network:
    trunk = nn.Sequential()
    if architecture["stem"] == "conv":
        trunk.add_module("conv", _Blocks(input_shape, num_classes, architecture, gated))
        return Network(stem=nn.Identity(), stem_key="identity", trunk=trunk)
    stem = Spectrum(input_shape)
    deep = architecture["body"] == "mlp"
    head = Head(
        "linear" if not deep else "mlp",
        stem.output_shape[0] * stem.output_shape[1],
        num_classes,
        hidden=integer(architecture, "hidden") if deep else 0,
        act=activation(architecture) if deep else None,
        gates=gate(gated, "hidden", "activation") if deep else None,
    )
    trunk.add_module("gate", gate(gated, "stem", "body"))
    trunk.add_module("spectrum", head)
    return Network(stem=stem, stem_key=stem.key, trunk=trunk)


@final
class _Blocks(nn.Module):
    """An entry convolution, residual blocks that each halve a long signal, and a linear head."""

    def __init__(
        self, input_shape: tuple[int, int], num_classes: int, architecture: Architecture, gated: bool
    ) -> None:
        super().__init__()
        channels, length = input_shape
        width = integer(architecture, "width")
        pool = str(architecture["pool"])
        depth = integer(architecture, "blocks")
        self.entry = ConvUnit(
            1,
            channels,
            width,
            integer(architecture, "entry.kernel"),
            norm_kind=str(architecture["norm"]),
            act=activation(architecture),
        )
        self.entry_gate = gate(gated, "stem", "entry.kernel")
        self.blocks = nn.ModuleList()
        for index in range(depth):
            halves = length >= _MIN_LENGTH
            shortcut = _pool(pool, 2, 2) if halves else nn.Identity()
            length = length // 2 if halves else length
            self.blocks.append(_block(f"blocks.{index}", width, shortcut, architecture, gated))
        self.blocks_gate = gate(gated, "activation", "blocks", "norm", "width")
        bins = integer(architecture, "bins")
        self.pool = _pool(pool, *grid_window(length, bins))
        self.pool_gate = gate(gated, "pool", "bins")
        self.head = Head(f"{pool}{bins}", width * bins, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry_gate(self.entry(x))
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.pool_gate(self.pool(self.blocks_gate(x)))))


def _pool(kind: str, window: int, stride: int) -> nn.Module:
    return nn.AvgPool1d(window, stride) if kind == "average" else nn.MaxPool1d(window, stride)


def _block(name: str, width: int, shortcut: nn.Module, architecture: Architecture, gated: bool) -> nn.Module:
    kind = str(architecture[f"{name}.kind"])
    branch: dict[str, nn.Module] = {}
    names = [f"{name}.kind"]
    if kind != "skip":
        names += [f"{name}.kernel", f"{name}.dilation"]
        kernel, dilation = integer(architecture, names[1]), integer(architecture, names[2])
        norm_kind = str(architecture["norm"])
        wide = partial(ConvUnit, 1, width, width, kernel, norm_kind=norm_kind, dilation=dilation)
        if kind == "plain":
            branch[kind] = wide(act=activation(architecture))
        else:
            point = ConvUnit(1, width, width, 1, norm_kind=norm_kind, act=activation(architecture))
            branch[kind] = nn.Sequential(wide(act=nn.Identity(), depthwise=True), point)
    return nn.Sequential(
        OrderedDict(pool=shortcut, block=Residual(nn.Identity(), branch, gate(gated, *names)))
    )
