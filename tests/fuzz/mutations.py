"""Bytes that were a message once: the ways in which a fuzzer changes them, all from one seeded generator."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

_NUMBERS: Final = (
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
_WORDS: Final = (
    b"",
    b"\x00",
    b"\xff",
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b'"',
    b"\\u0000",
    b"[" * 50,
    b"manifest",
    b"data",
    b"flat",
    b"refusal",
    b"facts",
    b"F64",
    b"I64",
    b"__metadata__",
    b"\x93NUMPY\x01\x00",
    b"PK\x03\x04",
    b"\x80\x04K\x01.",
    "é\U0001f600".encode(),
)
Mutation = Callable[[bytearray, Random, Sequence[bytes]], None]


def _place(data: bytearray, draw: Random) -> tuple[int, int]:
    begin = draw.randrange(len(data) + 1)
    return begin, min(len(data), begin + draw.choice((1, 1, 2, 4, 8, 16, 64, 300)))


def _flip(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    for _i in range(draw.choice((1, 1, 1, 2, 8))):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _write(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    begin, end = _place(data, draw)
    data[begin:end] = draw.randbytes(end - begin)


def _number(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    width = draw.choice((1, 2, 4, 8))
    begin = draw.randrange(len(data) + 1)
    value = draw.choice(_NUMBERS) % 256**width
    data[begin : begin + width] = value.to_bytes(width, draw.choice(("little", "big")))


def _word(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    begin, end = _place(data, draw)
    data[begin : draw.choice((begin, end))] = draw.choice(_WORDS)


def _drop(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    begin, end = _place(data, draw)
    del data[begin:end]


def _cut(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _repeat(data: bytearray, draw: Random, _: Sequence[bytes]) -> None:
    begin, end = _place(data, draw)
    data[begin:begin] = data[begin:end] * draw.choice((1, 1, 2, 40))


def _splice(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    other = draw.choice(others)
    begin, end = _place(bytearray(other), draw)
    here = _place(data, draw)
    data[here[0] : draw.choice(here)] = other[begin:end]


def _cross(data: bytearray, draw: Random, others: Sequence[bytes]) -> None:
    data[draw.randrange(len(data) + 1) :] = draw.choice(others)[draw.randrange(len(data) + 1) :]


_MUTATIONS: Final[tuple[Mutation, ...]] = (
    _flip,
    _flip,
    _write,
    _number,
    _word,
    _drop,
    _cut,
    _repeat,
    _splice,
    _cross,
)


def mutated(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """A message after one to four changes.

    Args:
        data: a well-formed one.
        draw: decides everything.
        others: from which pieces may come.
    """
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice(_MUTATIONS)(changed, draw, others)
    return bytes(changed)
