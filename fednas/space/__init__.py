"""What can be searched: architectures, spaces, the networks they build and what those cost."""

from functools import cache
from importlib import import_module

from fednas.errors import ConfigurationError
from fednas.space.architecture import Architecture, Value
from fednas.space.search_space import Choice, Node, Repeat, SearchSpace, choice, node, repeat

__all__ = [
    "SPACES",
    "Architecture",
    "Choice",
    "Node",
    "Repeat",
    "SearchSpace",
    "Value",
    "choice",
    "create",
    "node",
    "repeat",
]

SPACES = ("mlp", "conv", "conv1d")


@cache
def create(name: str, input_shape: tuple[int, ...], num_classes: int) -> SearchSpace:
    """Make a shipped search space; PyTorch is imported only now.

    Args:
        name: "mlp" for tables, "conv" for images, "conv1d" for signals.
        input_shape: The shape of one record: (features,), (channels, height, width) or (channels, length).
        num_classes: The number of classes, at least 2.

    Returns:
        The search space; the same object for the same arguments, so that costs are measured once.

    Raises:
        ConfigurationError: The name is unknown, or the shape does not suit the space.
    """
    if name not in SPACES:
        raise ConfigurationError(f"unknown search space {name!r}; choose one of {', '.join(SPACES)}")
    if num_classes < 2:
        raise ConfigurationError(f"expected at least 2 classes, got {num_classes=}")
    if not input_shape or min(input_shape) < 1:
        raise ConfigurationError(f"expected positive sizes in the input shape, got {input_shape}")
    space = import_module(f"fednas.space.{name}").space(tuple(input_shape), num_classes)
    assert isinstance(space, SearchSpace)
    return space
