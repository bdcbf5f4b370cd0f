"""A small space in which widths, kernels, depth and operator kinds all vary."""

from torch import Tensor, nn

from fednas.space.architecture import Architecture
from fednas.space.layers import Network, gate, norm
from fednas.space.search_space import SearchSpace, choice, node

INPUT_SHAPE = (2, 6, 6)
NUM_CLASSES = 3


class Trunk(nn.Module):
    """One convolution of a chosen kind, width and kernel, an optional second layer, a head."""

    def __init__(self, architecture: Architecture, gated: bool) -> None:
        super().__init__()
        width, kernel = int(architecture["width"]), int(architecture["kernel"])
        groups = 1 if architecture["kind"] == "dense" else 2
        conv = nn.Conv2d(2, width, kernel, padding=kernel // 2, groups=groups)
        self.blocks = nn.ModuleDict({str(architecture["kind"]): conv})
        self.norm = norm("group", width)
        self.gate = gate(gated, "width")
        self.hidden = nn.Linear(width, width) if architecture["deep"] else nn.Identity()
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = self.gate(self.norm(block(x)).tanh())
        out: Tensor = self.head(self.hidden(x.mean(dim=(2, 3))))
        return out


def _build(architecture: Architecture, gated: bool) -> Network:
    return Network(stem=nn.Identity(), stem_key="identity", trunk=Trunk(architecture, gated))


def space() -> SearchSpace:
    """Return the toy space: 3 widths x 3 kernels x 2 kinds x 2 depths."""
    tree = node(
        choice("width", 4, 8, 12, nested=True),
        choice("kernel", 1, 3, 5, nested=True),
        choice("kind", "grouped", "dense"),
        choice("deep", False, True),
    )
    return SearchSpace(
        name="toy", tree=tree, input_shape=INPUT_SHAPE, num_classes=NUM_CLASSES, builder=_build
    )
