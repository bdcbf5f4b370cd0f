"""The supernet: weights shared by all architectures of a space, and where each sub-network lives in them."""

from fednas.supernet.slices import flatten, load
from fednas.supernet.supernet import Contribution, Supernet

__all__ = ["Contribution", "Supernet", "flatten", "load"]
