"""Records pass a network in chunks of one shape, in which no record's arithmetic depends on the others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_ALIGNMENT = 16  # numbers of 4 bytes: a cache line, and the widest register
_FEWEST, _MOST = 8, 64


def suggested_rows(expected: float, limit: int) -> int:
    """Rows of a chunk that waste little on zeros and little on overhead: a power of two about a third.

    Args:
        expected: how many records are expected, a public number.
        limit: the most records that may be held at once, at least 1.

    Returns:
        At least 8 and at most 64, unless the limit is lower.
    """
    rows = _FEWEST
    while rows < min(_MOST, expected / 3.0):
        rows *= 2
    return min(rows, limit)


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
    row's place in it. `chunks` fixes the shape; that places do not matter either is tried on noise, which
    costs no privacy and tells the truth, because kernels are chosen by shape and address and never by value.

    Args:
        compute: maps features (limit, ...) and labels (limit,) to tensors with a row for each record.
        shape: of one record.
        limit: the most records that may be held at once, at least 1.

    Returns:
        ``limit`` if places and neighbours were seen to change nothing, else 1.
    """
    if limit == 1:
        return 1
    generator = torch.Generator().manual_seed(0)
    record = torch.randn(shape, generator=generator)
    labels = torch.zeros(limit, dtype=torch.int64)
    alike = torch.zeros((limit, *shape)).copy_(record)
    expected = []
    for rows in compute(alike, labels):
        expected.append(rows[0].clone())
        if not torch.equal(rows, expected[-1].expand_as(rows)):
            return 1
    mixed = 2.0 * torch.randn((limit, *shape), generator=generator) + 1.0
    mixed[::2] = record
    for rows, row in zip(compute(mixed, labels), expected, strict=True):
        if not torch.equal(rows[::2], row.expand_as(rows[::2])):
            return 1
    return limit


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
