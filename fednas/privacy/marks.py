"""Where a ledger was seen, as somebody else than its owner kept it: the form of high-water marks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from fednas.privacy.numbers import is_digest

FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A state that a ledger was in.

    Args:
        signer: the ledger's public key, 64 hexadecimal digits.
        entries: how many entries it had, at least 1.
        head: digest of the last of them.

    Raises:
        ValueError: a part is of another form.
    """

    signer: str
    entries: int
    head: str

    def __post_init__(self) -> None:
        if not is_digest(self.signer, self.head) or type(self.entries) is not int or self.entries < 1:
            raise ValueError("expected a signer and a head of 64 hexadecimal digits and entries >= 1")

    @classmethod
    def parse(cls, value: object) -> Self:
        """The mark that a JSON object holds.

        Raises:
            ValueError: it is of another form.
        """
        if not isinstance(value, dict) or set(value) != {"signer", "entries", "head"}:
            raise ValueError("expected an object with signer, entries and head")
        return cls(**value)


def parse_marks(value: object) -> dict[str, Mark]:
    """The marks in a file's JSON, by the public name of the dataset.

    Args:
        value: `{"format": 1, "datasets": {name: {"signer", "entries", "head"}}}`.

    Raises:
        ValueError: it is of another form.
    """
    if not isinstance(value, dict) or set(value) != {"format", "datasets"} or value["format"] != FORMAT:
        raise ValueError(f"expected marks of format {FORMAT}")
    datasets: Any = value["datasets"]
    if not isinstance(datasets, Mapping):
        raise ValueError("expected an object of datasets")
    return {name: Mark.parse(mark) for name, mark in datasets.items()}


def encode_marks(marks: Mapping[str, Mark]) -> dict[str, Any]:
    """The JSON that `parse_marks` reads."""
    return {"format": FORMAT, "datasets": {name: asdict(mark) for name, mark in marks.items()}}
