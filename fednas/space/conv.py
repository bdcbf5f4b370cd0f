"""The space for images: a frozen scattering stem or a trained one, then a linear head or stages of blocks."""

from functools import partial
from typing import cast, final

from torch import Tensor, nn

from fednas.errors import ConfigurationError
from fednas.space.architecture import Architecture
from fednas.space.layers import (
    ConvUnit,
    Head,
    Network,
    Residual,
    Widen,
    activation,
    gate,
    grid_window,
    integer,
)
from fednas.space.scattering import Scattering
from fednas.space.search_space import Node, SearchSpace, choice, node, repeat

_ACTIVATIONS = ("relu", "tanh", "selu")
_WIDTHS = (8, 16, 32)
_POOLS = (1, 2, 4)
_MIN_SIDE = 8
# A trained stem halves images from this side on; a stage halves features from the other.
_STEM_STRIDE_SIDE = 16
_STAGE_STRIDE_SIDE = 7


def space(input_shape: tuple[int, ...], num_classes: int) -> SearchSpace:
    """Make the convolutional space.

    Args:
        input_shape: (channels, height, width) of one record, both sides at least 8 pixels.
        num_classes: The number of logits.

    Returns:
        The space; the smallest network is a linear layer on pooled scattering features.

    Raises:
        ConfigurationError: The shape is not that of an image, or too small.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < _MIN_SIDE:
        raise ConfigurationError(
            f"the conv space needs images (channels, height, width) with sides of at least {_MIN_SIDE}, "
            f"got {input_shape}; use mlp for tables and conv1d for signals"
        )
    shape = (input_shape[0], input_shape[1], input_shape[2])
    side = min(Scattering(shape).output_shape[1:])
    grids = sorted({2, 4, side})
    grid = choice("grid", *grids)
    hidden = node(
        grid, choice("hidden", 16, 32, 64, nested=True), choice("activation", *_ACTIVATIONS, nested=True)
    )
    body = choice("body", ("linear", grid), ("mlp", hidden), ("conv", _stages()))
    trained = node(choice("entry.kernel", 3, 5, nested=True), _stages())
    return SearchSpace(
        name="conv",
        tree=node(choice("stem", ("scattering", body), ("conv", trained))),
        input_shape=input_shape,
        num_classes=num_classes,
        builder=partial(_build, shape, num_classes),
    )


def _stages() -> Node:
    kernel = choice("kernel", 3, 5, 7, nested=True)
    separable = node(kernel, choice("expansion", 1, 2, 4, nested=True))
    block = choice("kind", "skip", ("separable", separable), ("plain", kernel))
    stage = node(choice("width", *_WIDTHS, nested=True), repeat("blocks", (1, 2), block))
    return node(
        choice("activation", *_ACTIVATIONS, nested=True),
        choice("norm", "none", "group", nested=True),
        choice("entry.width", *_WIDTHS, nested=True),
        repeat("stages", (1, 2), stage),
        choice("pool", *_POOLS),
    )


def _build(
    input_shape: tuple[int, int, int], num_classes: int, architecture: Architecture, gated: bool
) -> Network:
    if architecture["stem"] == "conv":
        trained = _Stages(input_shape, num_classes, architecture, gated)
        return Network(stem=nn.Identity(), stem_key="identity", trunk=_named("conv", trained))
    stem = Scattering(input_shape)
    frozen: nn.Module
    if architecture["body"] == "conv":
        frozen = _Stages(stem.output_shape, num_classes, architecture, gated)
    else:
        frozen = _Shallow(stem.output_shape, num_classes, architecture, gated)
    return Network(stem=stem, stem_key=stem.key, trunk=_named("scattering", frozen))


def _named(name: str, module: nn.Module) -> nn.Module:
    """Prefix the parameters: what a weight means depends on the stem below it."""
    trunk = nn.Sequential()
    trunk.add_module(name, module)
    return trunk


def _pool(sides: tuple[int, int], grid: int) -> nn.Module:
    (height, row), (width, column) = grid_window(sides[0], grid), grid_window(sides[1], grid)
    return nn.AvgPool2d((height, width), (row, column))


@final
class _Shallow(nn.Module):
    """A linear layer, or a hidden one, on features pooled to a fixed grid."""

    def __init__(
        self, features: tuple[int, int, int], num_classes: int, architecture: Architecture, gated: bool
    ) -> None:
        super().__init__()
        channels, height, width = features
        grid = integer(architecture, "grid")
        deep = architecture["body"] == "mlp"
        self.pool = _pool((height, width), grid)
        self.gate = gate(gated, "stem", "body", "grid")
        self.head = Head(
            f"grid{grid}",
            channels * grid * grid,
            num_classes,
            hidden=integer(architecture, "hidden") if deep else 0,
            act=activation(architecture) if deep else None,
            gates=gate(gated, "hidden", "activation") if deep else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.gate(self.pool(x))))


@final
class _Stages(nn.Module):
    """An entry convolution, stages of residual blocks, and a linear head on a pooled grid."""

    def __init__(
        self, features: tuple[int, int, int], num_classes: int, architecture: Architecture, gated: bool
    ) -> None:
        super().__init__()
        source, *sides = features
        trained = architecture["stem"] == "conv"
        width = integer(architecture, "entry.width")
        stride = 2 if trained and min(sides) >= _STEM_STRIDE_SIDE else 1
        self.entry = ConvUnit(
            2,
            source,
            width,
            integer(architecture, "entry.kernel") if trained else 1,
            norm_kind=str(architecture["norm"]),
            act=activation(architecture),
            stride=stride,
        )
        entry_names = ["stem", "entry.width"] + ["entry.kernel"] * trained
        self.entry_gate = gate(gated, *entry_names)
        sides = [-(-side // stride) for side in sides]
        self.stages = nn.ModuleList()
        for index in range(integer(architecture, "stages")):
            # Scattering has already halved; its first stage keeps the size.
            halves = min(sides) >= _STAGE_STRIDE_SIDE and (trained or index > 0)
            stride = 2 if halves else 1
            self.stages.append(_stage(f"stages.{index}", width, stride, architecture, gated))
            width = integer(architecture, f"stages.{index}.width")
            sides = [-(-side // stride) for side in sides]
        self.stages_gate = gate(gated, *["activation", "norm", "stages"], *["body"] * (not trained))
        pool = integer(architecture, "pool")
        self.pool = _pool((sides[0], sides[1]), pool)
        self.pool_gate = gate(gated, "pool")
        self.head = Head(f"pool{pool}", width * pool * pool, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry_gate(self.entry(x))
        for stage in self.stages:
            x = stage(x)
        return cast(Tensor, self.head(self.pool_gate(self.pool(self.stages_gate(x)))))


def _stage(prefix: str, source: int, stride: int, architecture: Architecture, gated: bool) -> nn.Module:
    depth = integer(architecture, f"{prefix}.blocks")
    width = integer(architecture, f"{prefix}.width")
    blocks = nn.Sequential()
    for index in range(depth):
        name = f"{prefix}.blocks.{index}"
        last = [f"{prefix}.blocks", f"{prefix}.width"] if index == depth - 1 else []
        blocks.append(_block(name, source, width, stride, architecture, gated, last))
        source, stride = width, 1
    return blocks


def _block(
    name: str, source: int, target: int, stride: int, architecture: Architecture, gated: bool, last: list[str]
) -> Residual:
    halve: list[nn.Module] = [nn.AvgPool2d(3, 2, 1)] if stride == 2 else []
    widen: list[nn.Module] = [Widen(source, target)] if source != target else []
    kind = str(architecture[f"{name}.kind"])
    names = [f"{name}.kind"]
    branch: dict[str, nn.Module] = {}
    if kind != "skip":
        kernel = integer(architecture, f"{name}.kernel")
        names.append(f"{name}.kernel")
        norm_kind = str(architecture["norm"])
        if kind == "plain":
            branch[kind] = ConvUnit(
                2, source, target, kernel, norm_kind=norm_kind, act=activation(architecture), stride=stride
            )
        else:
            hidden = target * integer(architecture, f"{name}.expansion")
            names.append(f"{name}.expansion")
            branch[kind] = nn.Sequential(
                ConvUnit(2, source, hidden, 1, norm_kind=norm_kind, act=activation(architecture)),
                ConvUnit(
                    2,
                    hidden,
                    hidden,
                    kernel,
                    norm_kind=norm_kind,
                    act=activation(architecture),
                    stride=stride,
                    depthwise=True,
                ),
                ConvUnit(2, hidden, target, 1, norm_kind=norm_kind, act=nn.Identity()),
            )
    return Residual(nn.Sequential(*halve, *widen), branch, gate(gated, *names, *last))
