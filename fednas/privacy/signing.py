"""Ed25519 signatures: of a site under the state of its ledger, and of a server under what it asks."""

import hashlib
import hmac
from pathlib import Path
from typing import Self, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fednas.errors import ConfigurationError


def signed_text(dataset: str, entries: int, head: str) -> bytes:
    """What a signature stands under: the first `entries` entries of a dataset's ledger end in this digest.

    Args:
        dataset: public name of the dataset.
        entries: how many entries lead to the head.
        head: digest of the last of them, 64 hexadecimal digits.
    """
    return f"fednas ledger\n{dataset}\n{entries}\n{head}".encode()


@final
class Signer:
    """Signs the states of one ledger; the private key exists in memory only.

    Args:
        secret: of the ledger's key file. The signing key is its keyed hash, so the public key tells nothing
            of the stream assignment that the same secret decides.

    Source: Josefsson and Liusvaara (2017), RFC 8032.
    """

    def __init__(self, secret: bytes) -> None:
        seed = hmac.digest(secret, b"fednas ledger signing key", hashlib.sha256)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public_key(self) -> str:
        """64 hexadecimal digits; whoever keeps them recognises this ledger for ever."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, dataset: str, entries: int, head: str) -> str:
        """Sign a state; see `signed_text`. The same state always has the same signature.

        Returns:
            128 hexadecimal digits.
        """
        return self._key.sign(signed_text(dataset, entries, head)).hex()


@final
class TaskSigner:
    """Signs what a server asks of its sites; the private key exists in memory only.

    Args:
        secret: 32 bytes of the server's key file.

    Raises:
        ConfigurationError: it has another length.

    Source: Josefsson and Liusvaara (2017), RFC 8032.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ConfigurationError(
                f"expected 32 bytes of a server's signing key, got {len(secret)}: give the file that "
                "`python -m server prepare` made"
            )
        self._key = Ed25519PrivateKey.from_private_bytes(secret)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The signer of a key file.

        Raises:
            ConfigurationError: it cannot be read, or is no such key.
        """
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {path}: {error.strerror}; give the signing.key of the server's kit"
            ) from error

    @property
    def public_key(self) -> str:
        """64 hexadecimal digits, for the `server_key` of a site.toml."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, site: str, digest: str, mark: str) -> str:
        """Sign a task; see `task_text`.

        Returns:
            128 hexadecimal digits.
        """
        return self._key.sign(task_text(site, digest, mark)).hex()


def task_text(site: str, digest: str, mark: str) -> bytes:
    """What a server's signature stands under: this task, for this site, after this state of its ledger.

    Args:
        site: public name of the site, without a newline.
        digest: of the task, 64 hexadecimal digits.
        mark: the ledger head that the task carries, or "".
    """
    return f"fednas task\n{site}\n{digest}\n{mark}".encode()


def is_signed_task(public_key: str, signature: str, *, site: str, digest: str, mark: str) -> bool:
    """Whether a server signed a task; malformed keys and signatures did not.

    Args:
        public_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
        site: public name of the site that was asked.
        digest: of the task.
        mark: the ledger head that the task carries, or "".
    """
    return _verified(public_key, signature, task_text(site, digest, mark))


def is_signed(public_key: str, signature: str, *, dataset: str, entries: int, head: str) -> bool:
    """Whether a signature stands under a state of a dataset's ledger; malformed keys and signatures do not.

    Args:
        public_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
        dataset: public name of the dataset.
        entries: how many entries lead to the head.
        head: digest of the last of them.
    """
    return _verified(public_key, signature, signed_text(dataset, entries, head))


def _verified(public_key: str, signature: str, text: bytes) -> bool:
    try:
        raw = bytes.fromhex(signature)
        if raw.hex() != signature:  # spaces and capitals would be another spelling of the same
            return False
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(raw, text)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
