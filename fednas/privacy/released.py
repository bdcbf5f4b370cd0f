"""What passes the gate: the name of a request, the permit to answer it, and the value that was paid for."""

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Final, Generic, NoReturn, TypeAlias, TypeVar, final

import numpy as np
from safetensors.numpy import save

from fednas.errors import ConfigurationError, PrivacyError
from fednas.privacy.entropy import Entropy
from fednas.privacy.numbers import canonical_json, is_digest
from fednas.privacy.plan import Allowance, PrivacyPlan

Arrays: TypeAlias = dict[str, np.ndarray]
T = TypeVar("T")

SEAL: Final = object()
"""Proof that the ledger is the maker; a test scans the sources so that no other module touches it."""

_MAX_NAME: Final = 200


class _Sealed:
    """Made by the ledger alone: never copied, pickled or replaced."""

    __slots__ = ()

    def _refuse(self, *_: object) -> NoReturn:
        raise PrivacyError(f"a {type(self).__name__} comes from PrivacyLedger.release and is never copied")

    __copy__ = __deepcopy__ = __reduce__ = __reduce_ex__ = __getstate__ = __setstate__ = __replace__ = _refuse

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            raise PrivacyError(f"{cls.__name__} cannot derive from what only the ledger makes")
        super().__init_subclass__()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Released(_Sealed, Generic[T]):
    """A value that was paid for: it may leave the site.

    Args:
        value: what the mechanism made, read back from the ledger; read-only.
        operation_id: of the operation that was charged.
        previous: digest of the entry before the RELEASE entry: with it, whoever has the reply can compute the
            head, so that one signature vouches for every byte.
        head: digest of the ledger's RELEASE entry, the same each time the reply is asked for.
        entries: number of entries up to that head: it never decreases between new releases.
        signature: of the ledger under its dataset, entries and head; see `fednas.privacy.signing`.

    Raises:
        PrivacyError: when constructed anywhere but in the ledger.
    """

    value: T = field(repr=False)
    operation_id: str
    previous: str
    head: str
    entries: int
    signature: str
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        if seal is not SEAL:
            raise PrivacyError("only PrivacyLedger.release makes a Released value: give it a mechanism")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """The name of one request and the digest of what it asks; every field is public.

    Args:
        run: the run's identity; the ledger holds one plan for each.
        round: counted from 0 or 1, not negative.
        kind: what is asked, a word.
        nonce: tells operations of a round apart; the same when a request is repeated.
        digest: sha256 of the canonical message, 64 hexadecimal digits.

    Raises:
        ConfigurationError: a field is empty, too long, or not printable ASCII.
    """

    run: str
    round: int
    kind: str
    nonce: str
    digest: str

    def __post_init__(self) -> None:
        for name, text in (("run", self.run), ("kind", self.kind), ("nonce", self.nonce)):
            check_name(name, text)
        if isinstance(self.round, bool) or not isinstance(self.round, int) or not 0 <= self.round < 2**53:
            raise ConfigurationError(f"expected 0 <= round < 2^53, got {self.round!r}")
        if not is_digest(self.digest):
            raise ConfigurationError("expected a digest of 64 hexadecimal digits: sha256 of the message")

    @property
    def id(self) -> str:
        """32 hexadecimal digits of the run, the round and the nonce; the ledger stands for the dataset."""
        return operation_id(self.run, self.round, self.nonce)


def operation_id(run: str, round_number: int, nonce: str) -> str:
    """32 hexadecimal digits that name an operation, whatever it asks; see `Operation`."""
    return hashlib.sha256(canonical_json([run, round_number, nonce]).encode()).hexdigest()[:32]


@final
class Permit(_Sealed):
    """What a mechanism may do: which streams, under which terms, with which noise; valid while it runs."""

    __slots__ = ("_charges", "_entropy", "_plan", "_valid")

    def __init__(
        self, *, plan: PrivacyPlan, charges: Mapping[str, int], entropy: Entropy, seal: object = None
    ) -> None:
        if seal is not SEAL:
            raise PrivacyError("only PrivacyLedger.release makes a Permit: give it a mechanism")
        self._plan, self._charges, self._entropy, self._valid = plan, dict(charges), entropy, True

    def _check(self) -> None:
        if not self._valid:
            raise PrivacyError(
                "this permit's release is over; every access to data needs a release of its own"
            )

    def end(self) -> None:
        self._valid = False

    @property
    def streams(self) -> frozenset[str]:
        """The streams whose records may be read: those of the charged allowances."""
        self._check()
        return frozenset(s for name in self._charges for s in self._plan.allowance(name).streams)

    @property
    def entropy(self) -> Entropy:
        """The only randomness of the mechanism, fresh for this release."""
        self._check()
        return self._entropy

    def allowance(self, name: str) -> Allowance:
        """The terms of a charged allowance.

        Args:
            name: as in the plan and in the charges.

        Raises:
            PrivacyError: this release was not charged to it, or is over.
        """
        self._check()
        self.amount(name)
        return self._plan.allowance(name)

    def amount(self, name: str) -> int:
        """How many steps or releases were charged to an allowance.

        Args:
            name: as in the plan and in the charges.

        Raises:
            PrivacyError: this release was not charged to it, or is over.
        """
        self._check()
        if name not in self._charges:
            raise PrivacyError(f"this release is not charged to the allowance {name!r}; charge it first")
        return self._charges[name]


def check_name(what: str, text: str) -> None:
    """Refuse a name that cannot stand in an entry.

    Args:
        what: is named, for the message.
        text: the name, 1 to 200 printable ASCII characters.

    Raises:
        ConfigurationError: it is anything else.
    """
    if (
        not isinstance(text, str)
        or not 0 < len(text) <= _MAX_NAME
        or not (text.isascii() and text.isprintable())
    ):
        raise ConfigurationError(
            f"expected {what} of 1 to {_MAX_NAME} printable ASCII characters, got {text!r:.60}"
        )


def serialise(arrays: Arrays) -> bytes:
    """Write what a mechanism returned as the bytes that are stored and sent.

    Args:
        arrays: named arrays of booleans, integers or floats.

    Returns:
        safetensors bytes.

    Raises:
        PrivacyError: it is anything else.
    """
    if not isinstance(arrays, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
        for name, array in arrays.items()
    ):
        raise PrivacyError("a mechanism returns a dictionary of named numeric arrays; its charge stays")
    # safetensors writes the memory behind a strided view as if it were dense: other numbers would leave.
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})
