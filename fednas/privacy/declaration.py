"""What a dataset's owner declares, and with which software: public words that a statement repeats."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fednas.errors import ConfigurationError

PACKAGES = ("fednas", "cryptography", "dp-accounting", "flwr", "numpy", "opacus", "safetensors", "torch")
_MAX_WORDS = 500


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Who answers for a dataset, what for, and how many records it has in the owner's words.

    Args:
        controller: who decides about the data, at most 500 printable characters; "" where not declared.
        purpose: what the study is for, likewise.
        declared_size: the public size of the dataset in records, never counted; 0 where not declared.

    Raises:
        ConfigurationError: a text is too long or not printable, or the size is negative.
    """

    controller: str = ""
    purpose: str = ""
    declared_size: int = 0

    def __post_init__(self) -> None:
        for name in ("controller", "purpose"):
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) > _MAX_WORDS or not (text.isprintable() or not text):
                raise ConfigurationError(f"expected {name} of at most {_MAX_WORDS} printable characters")
        if type(self.declared_size) is not int or self.declared_size < 0:
            raise ConfigurationError(f"expected declared_size >= 0, got {self.declared_size!r:.40}")

    def encode(self) -> dict[str, Any]:
        """The body of a ledger's DECLARE entry: the owner's words and the software at work."""
        return asdict(self) | {"code": code_digest(), "packages": dict(packages())}

    @classmethod
    def decode(cls, body: Mapping[str, Any]) -> "Declaration":
        """The owner's words in a DECLARE entry."""
        return cls(
            controller=body["controller"], purpose=body["purpose"], declared_size=body["declared_size"]
        )


@cache
def code_digest() -> str:
    """The sha256 of every module of this library, by path and content: 64 hexadecimal digits."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


@cache
def packages() -> tuple[tuple[str, str], ...]:
    """(name, version) of what the mechanisms and the accountants run on, as installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # a library that runs from a bundle has no metadata of its own
            found.append((name, "not installed"))
    return tuple(found)
