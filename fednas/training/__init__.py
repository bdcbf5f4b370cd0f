"""Private training of one materialised sub-network on one site."""

from fednas.training.alphas import architecture_gradient
from fednas.training.engine import ClippedSum, OpacusEngine, opacus_engine
from fednas.training.weights import Optimisation, train_weights

__all__ = [
    "ClippedSum",
    "OpacusEngine",
    "Optimisation",
    "architecture_gradient",
    "opacus_engine",
    "train_weights",
]
