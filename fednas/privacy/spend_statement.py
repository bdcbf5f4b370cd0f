"""What a ledger says its dataset has lost: values that may be printed anywhere."""

from dataclasses import dataclass

from fednas.errors import ConfigurationError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.declaration import Declaration


@dataclass(frozen=True, kw_only=True)
class StreamSpend:
    """What one stream's records have lost, add or remove one record, at the cap's delta.

    Args:
        stream: `weights`, `architecture` or `fitness`.
        claimed_epsilon: the number to state, infinite when noise was reproducible or absent. Under a cap
            without an order the PLD epsilon of every opened plan at its T_max: stopping early does not lower
            it. Under a cap with an order the first cap, once anything was charged: what the filter enforces.
        charged_epsilon: epsilon of the events that were really charged, for information only: by PLD, or by
            the cap's order.
        nominal_claimed_epsilon: the claim as if no noise had been seeded.
        nominal_charged_epsilon: the charge as if no noise had been seeded.
    """

    stream: str
    claimed_epsilon: float
    charged_epsilon: float
    nominal_claimed_epsilon: float
    nominal_charged_epsilon: float


@dataclass(frozen=True, kw_only=True)
class SpendStatement:
    """Everything a ledger can say about the privacy of its dataset; all of it may be printed anywhere.

    Args:
        dataset: the dataset's public name.
        cap: what its owner allows, per stream.
        streams: the spend of each stream; they are disjoint, so the dataset's epsilon is their maximum.
        entries: how many entries the ledger holds.
        head: digest of the last one; keep it elsewhere, it is what a restored old copy cannot show.
        signer: public key under which the ledger is signed, 64 hexadecimal digits.
        declaration: what the owner declares.
        non_private: whether any noise was reproducible or absent; then epsilons are infinite.
        open_reservations: charges without a release: crashes, failures and computations under way.
        refusals: requests that were refused, each counted once.
    """

    dataset: str
    cap: PrivacyBudget
    streams: tuple[StreamSpend, ...]
    entries: int
    head: str
    signer: str
    declaration: Declaration
    non_private: bool
    open_reservations: int
    refusals: int

    @property
    def delta(self) -> float:
        """The delta of every epsilon here: the cap's."""
        return self.cap.delta

    @property
    def claimed_epsilon(self) -> float:
        """The dataset's epsilon: the maximum over its disjoint streams."""
        return max(spend.claimed_epsilon for spend in self.streams)

    @property
    def nominal_claimed_epsilon(self) -> float:
        """The dataset's epsilon as if no noise had been seeded."""
        return max(spend.nominal_claimed_epsilon for spend in self.streams)

    def stream(self, name: str) -> StreamSpend:
        """The spend of one stream.

        Args:
            name: `weights`, `architecture` or `fitness`.

        Raises:
            ConfigurationError: there is no such stream.
        """
        for spend in self.streams:
            if spend.stream == name:
                return spend
        raise ConfigurationError(f"unknown stream {name!r}; choose one of {[s.stream for s in self.streams]}")
