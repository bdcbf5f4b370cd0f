"""Records pass a network in chunks of one shape, in which no record's arithmetic depends on the others."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_ALIGNMENT = 16  # numbers of 4 bytes: a cache line, and the widest register
_FEWEST, _MOST = 8, 64  # rows of a chunk; kernels leave over no row of a multiple of eight


def suggested_rows(expected: float, limit: int) -> int:
    """Rows of a chunk with which a usual sample takes few chunks and leaves few rows to zeros.

    Args:
        expected: how many records a Poisson sample has on average, a public number.
        limit: the most records that may be held at once, at least 1.

    Returns:
        A multiple of eight, at most 64, or the limit if that is lower.
    """
    usual = expected + 1.2 * math.sqrt(expected)
    number = math.ceil(usual / min(_MOST, limit))
    return min(limit, _FEWEST * max(1, math.ceil(usual / max(1, number) / _FEWEST)))


def chunks(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Divide records into chunks of exactly ``size`` rows; the last one ends in zeros.

    Args:
        x: shape (n, ...), float32; n may be 0, then there is no chunk.
        y: shape (n,), int64.
        size: rows of a chunk, the same for every number of records.

    Yields:
        Features of shape (size, ...), labels of shape (size,), both in memory of their own, and how many of
        the rows are records.
    """
    for start in range(0, len(x), size):
        number = min(size, len(x) - start)
        rows, labels = torch.zeros((size, *x.shape[1:])), torch.zeros(size, dtype=torch.int64)
        rows[:number], labels[:number] = x[start : start + number], y[start : start + number]
        yield rows, labels, number


def steady_rows(
    compute: Callable[[Tensor, Tensor], Sequence[Tensor]], shape: tuple[int, ...], limit: int
) -> int:
    """How many records may pass together so that a record's values are the same bits in any place.

    Which kernel computes a row, and so how its sums are rounded, may depend on the chunk's shape and on the
    row's place in it. `chunks` fixes the shape. Places matter in a chunk of five rows, whose last row is left
    over by kernels that take four or eight at once, so that none but multiples of eight are used; that they
    do not matter there is tried on noise, which costs no privacy and tells the truth, because kernels are
    chosen by shape and address and never by value.

    Args:
        compute: maps features (n, ...) and labels (n,) to tensors with a row for each record.
        shape: of one record.
        limit: the most records that may be held at once, at least 1.

    Returns:
        The largest multiple of eight up to ``limit`` if places and neighbours were seen to change nothing at
        it, else 1.
    """
    rows = limit - limit % _FEWEST
    if not rows:
        return 1
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(rows, dtype=torch.int64)
    noise = torch.randn((rows, *shape), generator=generator)
    expected = [values.clone() for values in compute(noise, labels)]
    # All move by a place, and every fourth is another record.
    moved = torch.roll(noise, 1, 0)
    kept = torch.arange(rows) % 4 != 2
    moved[~kept] = 2.0 * torch.randn((int((~kept).sum()), *shape), generator=generator) + 1.0
    for values, before in zip(compute(moved, labels), expected, strict=True):
        if not torch.equal(values[kept], torch.roll(before, 1, 0)[kept]):
            return 1
    return rows


@contextmanager
def aligned(module: nn.Module) -> Iterator[None]:
    """Let every row that enters a linear layer begin at the same distance from a cache line.

    Matrix kernels round a row that is not aligned in another order than one that is, so its place in a chunk
    would change its bits.
    """
    handles = [
        part.register_forward_pre_hook(_align) for part in module.modules() if isinstance(part, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _align(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (x,) = args
    length = x.shape[-1]
    missing = -length % _ALIGNMENT
    return (nn.functional.pad(x, (0, missing))[..., :length],) if missing else (x,)
