"""A site's signature under the state of its ledger: Ed25519, from the same secret as its streams."""

import hashlib
import hmac
from typing import final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


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


def is_signed(public_key: str, signature: str, *, dataset: str, entries: int, head: str) -> bool:
    """Whether a signature stands under a state of a dataset's ledger; malformed keys and signatures do not.

    Args:
        public_key: 64 hexadecimal digits.
        signature: 128 hexadecimal digits.
        dataset: public name of the dataset.
        entries: how many entries lead to the head.
        head: digest of the last of them.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), signed_text(dataset, entries, head))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
