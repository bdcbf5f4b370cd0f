"""What a reader returns, and how classes are named outside an array; both know the public schema only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fednas.config import DataSchema


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Records:
    """What a file or function holds, before it is held against the schema; it has no printable form.

    Args:
        x: features.
        y: classes.
        names: one identifier per record, empty where there is none; or an array as its owner wrote it, still
            to be checked; or None. A table gives no array: in one, the longest identifier sets the size of
            all.
        left_out: how many records could not be read at all.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    names: Sequence[bytes] | NDArray[Any] | None = None
    left_out: int = 0


def classes_by_name(schema: DataSchema) -> dict[str, int]:
    """The texts that name a class: its name, or its number where no class of the study has a number as name.

    Programs that write tables turn whole numbers into fractions when one is missing; `1.0` is `1`.
    """
    names: dict[str, int] = {}
    for index, name in enumerate(schema.class_names):
        names.setdefault(name, index)
    if not any(name.isdecimal() for name in schema.class_names):
        names |= {str(index): index for index in range(schema.num_classes)}
    return {f"{name}.0": index for name, index in names.items() if name.isdecimal()} | names
