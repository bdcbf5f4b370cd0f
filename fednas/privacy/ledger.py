"""Charge first, release after: the single gate for private data."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, cast, final

from safetensors.numpy import load

from fednas.errors import LedgerError, PrivacyError, ReplayMismatchError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.declaration import Declaration
from fednas.privacy.entropy import Entropy, SecureEntropy, SeededEntropy
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.released import SEAL, Arrays, Operation, Permit, Released, check_name, serialise
from fednas.privacy.renyi_filter import BudgetExhaustedError, StreamsFixedError
from fednas.privacy.signing import Signer
from fednas.privacy.spend import FORMAT, Spend, refusal_key
from fednas.privacy.spend_statement import SpendStatement, StreamSpend
from fednas.privacy.store import LedgerStore, key_file, release_body, stream_key

__all__ = [
    "Arrays",
    "BudgetExhaustedError",
    "Declaration",
    "Operation",
    "Permit",
    "PrivacyLedger",
    "Released",
    "SpendStatement",
    "StreamSpend",
    "StreamsFixedError",
    "read_statement",
]


@final
class PrivacyLedger:
    """The only gate between one dataset's records and the world, kept in a file of its owner.

    Guarantees:
        - A charge is durable before its mechanism runs; no failure, crash or retry gives it back.
        - Under a cap without an order, per stream, the PLD epsilon of all opened plans at T_max never exceeds
          the cap at which each was opened, over all runs, processes and versions that use the file.
        - Under a cap with an order, per stream, the Rényi divergences of all charges at that order never add
          up to more than the cap allows: a filter, so each charge may depend on whatever was released before.
        - A repeated operation returns the stored bytes: no new noise, no new charge.
        - No entry holds anything that depends on a record.
        - Each commit ends in a signature: without the key file nobody can add to it or change it.

    Source: McSherry (2009), "Privacy integrated queries", for parallel composition over disjoint streams;
    Zhu et al. (2022), arXiv 2106.08567, for composing privacy losses; Feldman and Zrnic (2021), arXiv
    2008.11193, for the filter.
    """

    def __init__(
        self,
        *,
        store: LedgerStore,
        spend: Spend,
        dataset: str,
        key: bytes,
        test_seed: int | None,
        seal: object = None,
    ) -> None:
        if seal is not SEAL:
            raise PrivacyError("open a ledger with PrivacyLedger.open")
        self._store, self._spend, self._dataset = store, spend, dataset
        self._key, self._signer, self._test_seed = key, Signer(key), test_seed

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        dataset: str,
        cap: PrivacyBudget,
        test_seed: int | None = None,
        declaration: Declaration | None = None,
    ) -> "PrivacyLedger":
        """Create a dataset's ledger, or open the one it has.

        Args:
            path: of the file; the secret that assigns records to streams, and signs, lies beside it as
                `<path>.key`.
            dataset: public name of the dataset, the same for ever.
            cap: what its owner allows per stream; another epsilon than before is recorded as an entry. Its
                order never changes; with one, epsilon may only be lowered.
            test_seed: makes all noise reproducible and so every epsilon infinite; None in production.
            declaration: what the owner declares; None keeps the words of before.

        Returns:
            An open ledger; use it as a context manager or close it.

        Raises:
            LedgerError: the file belongs to another dataset, key or noise source, its chain or its signature
                is broken, it is missing beside its key, the cap may not change so, or the disk refuses.
        """
        check_name("dataset", dataset)
        key_path = key_file(path)
        if test_seed is None and key_path.exists() and not path.exists():  # the key is made after the file
            raise LedgerError(
                f"{key_path} has lost its ledger {path.name}: restore it, or its spend is forgotten"
            )
        store, spend = LedgerStore(path), Spend()
        try:
            with store.transaction():
                store.replay(spend.add)
                key = stream_key(key_path, test_seed, create=spend.cap is None)
            ledger = cls(store=store, spend=spend, dataset=dataset, key=key, test_seed=test_seed, seal=SEAL)
            with ledger._writing():
                ledger._introduce(cap, declaration)
            ledger._catch_up()
            spend.standing()  # accountants are slow: now, not when something is asked
        except BaseException:
            store.close()
            raise
        return ledger

    def _introduce(self, cap: PrivacyBudget, declaration: Declaration | None) -> None:
        """Write down what is new since the last opening: everything at the first one."""
        spend = self._spend
        if spend.cap is None:
            self._store.append(
                "OPEN",
                {
                    "cap": cap.encode(),
                    "dataset": self._dataset,
                    "format": FORMAT,
                    "key": hashlib.sha256(self._key).hexdigest(),
                    "noise": "secure" if self._test_seed is None else "seeded",
                    "signer": self._signer.public_key,
                },
            )
        else:
            spend.check_identity(dataset=self._dataset, key=self._key, cap=cap)
            if spend.cap != cap:
                self._store.append("CAP", {"cap": cap.encode()})
        declared = (declaration or spend.declaration).encode()
        if spend.declared != declared:
            self._store.append("DECLARE", declared)

    @property
    def stream_key(self) -> bytes:
        """32 secret bytes that assign this dataset's records to streams; they never leave the site."""
        return self._key

    @property
    def public_key(self) -> str:
        """64 hexadecimal digits of the key under which every commit of this ledger is signed."""
        return self._signer.public_key

    def position(self) -> tuple[int, str]:
        """Number of entries and digest of the last one: what a server keeps as its high-water mark.

        Raises:
            LedgerError: the file is corrupt or the disk refuses.
        """
        self._catch_up()
        return self._spend.entries, self._spend.head

    def contains(self, head: str) -> bool:
        """Whether this ledger has been in the state that a head names; an older copy has not.

        Args:
            head: digest of an entry, as somebody else kept it.

        Raises:
            LedgerError: the file is corrupt or the disk refuses.
        """
        self._catch_up()
        return self._store.contains(head)

    @property
    def head(self) -> str:
        """Digest of the last entry: whoever keeps it can prove that later copies of the file contain it."""
        self._catch_up()
        return self._spend.head

    def open_plan(self, run: str, plan: PrivacyPlan) -> None:
        """Charge a run's plan at its T_max; repeating the same call changes nothing.

        Args:
            run: the run's identity.
            plan: fixed for the whole run.

        Raises:
            ReplayMismatchError: the run has another plan already.
            StreamsFixedError: the plan's proportions are not those of the dataset's first plan.
            BudgetExhaustedError: with this plan a stream's PLD epsilon would exceed the cap.
            LedgerError: the file is corrupt or the disk refuses.
        """
        check_name("run", run)
        self._catch_up()
        if run not in self._spend.plans:
            self._spend.excess(plan)  # accountants are slow and cached: not while others wait for the lock
        refusal: PrivacyError | None = None
        with self._writing():
            known = self._spend.plans.get(run)
            if known is None:
                refusal = self._spend.moved(plan) or self._spend.excess(plan)
            elif known.id != plan.id:
                refusal = ReplayMismatchError(f"run {run!r} has another plan; a new plan needs a new run")
            if refusal is not None:
                self._record(refusal, run=run, subject=f"plan {plan.id} of {run}")
            elif known is None:
                document = json.loads(plan.to_json())
                self._store.append("PLAN", {"id": plan.id, "plan": document, "run": run})
        if refusal is not None:
            raise refusal

    def release(
        self, operation: Operation, *, charges: Mapping[str, int], mechanism: Callable[[Permit], Arrays]
    ) -> Released[Arrays]:
        """Charge, then run a mechanism on private data, then keep its reply for ever.

        Args:
            operation: names the request; its run has an open plan.
            charges: steps or releases for each of the plan's allowances, at least 1 each.
            mechanism: the private computation; it sees data only through the permit it is given.

        Returns:
            The stored reply; when the operation was released before, those same bytes again.

        Raises:
            ReplayMismatchError: the operation was seen with another message.
            BudgetExhaustedError: an allowance has no room for the charge, or the cap is below the claim now.
            PrivacyError: the run has no plan, a charge is malformed, or the mechanism made no arrays.
            LedgerError: the file is corrupt or the disk refuses; nothing is released.

        Guarantees:
            - When the mechanism starts, its charge is on the disk; whatever happens, the charge stays.
            - Two processes never spend the same allowance.
            - What is returned is what is stored.
        """
        self._catch_up()
        self._spend.standing()  # slow once the cap was lowered: not while others wait for the lock
        refusal: PrivacyError | None = None
        with self._writing():
            known = self._spend.operations.get(operation.id, (operation.kind, operation.digest))
            done = operation.id in self._spend.releases
            if known != (operation.kind, operation.digest):
                refusal = ReplayMismatchError(
                    f"operation {operation.id} was asked with another message; give a new request a nonce"
                )
            elif not done:
                refusal = self._spend.shortage(operation.run, charges)
            if refusal is not None:
                self._record(
                    refusal, run=operation.run, subject=f"operation {operation.id} {operation.digest}"
                )
            elif not done:
                self._store.append("RESERVE", self._reservation(operation, charges))
        if refusal is not None:
            raise refusal
        if not done:
            reply = serialise(self._run(operation, charges, mechanism))
            with self._writing():
                # Another process may have answered the same request meanwhile: its reply is the reply.
                if operation.id not in self._spend.releases:
                    self._store.keep(operation.id, reply)
                    self._store.append("RELEASE", release_body(operation.id, reply))
        return self._stored(operation.id)

    def statement(self) -> SpendStatement:
        """What this dataset has spent so far, over all runs.

        Returns:
            Epsilons per stream by privacy loss distributions, and how to check them.

        Raises:
            LedgerError: the file is corrupt or the disk refuses.
        """
        self._catch_up()
        return self._spend.statement()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _catch_up(self) -> None:
        self._store.replay(self._spend.add)
        self._spend.check_signature()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the file, know all of it, and end what was added with a signature."""
        with self._store.transaction():
            self._catch_up()
            yield
            entries, kind, head = self._store.tail()
            if entries > self._spend.entries:
                assert kind != "CHECKPOINT"
                signature = self._signer.sign(self._dataset, entries, head)
                self._store.append("CHECKPOINT", {"signature": signature})

    def _record(self, refusal: PrivacyError, *, run: str, subject: str) -> None:
        code = "REPLAY_MISMATCH"
        if isinstance(refusal, BudgetExhaustedError | StreamsFixedError):
            code = refusal.code
        if refusal_key(code, subject) not in self._spend.refusals:
            self._store.append("REFUSE", {"code": code, "run": run, "subject": subject})

    def _reservation(self, operation: Operation, charges: Mapping[str, int]) -> dict[str, Any]:
        return {
            "charges": dict(charges),
            "digest": operation.digest,
            "kind": operation.kind,
            "noise": "secure" if self._test_seed is None else "seeded",
            "operation": operation.id,
            "round": operation.round,
            "run": operation.run,
        }

    def _run(
        self, operation: Operation, charges: Mapping[str, int], mechanism: Callable[[Permit], Arrays]
    ) -> Arrays:
        entropy: Entropy = SecureEntropy()
        if self._test_seed is not None:
            entropy = SeededEntropy(self._test_seed, operation.id)
        plan = self._spend.plans[operation.run]
        permit = Permit(plan=plan, charges=charges, entropy=entropy, seal=SEAL)
        try:
            return mechanism(permit)
        finally:
            permit.end()

    def _stored(self, operation_id: str) -> Released[Arrays]:
        self._catch_up()
        release = self._spend.releases[operation_id]
        reply = self._store.reply(operation_id)
        if reply is None or hashlib.sha256(reply).hexdigest() != release.reply:
            raise LedgerError(
                f"the stored reply of operation {operation_id} is not the released one: restore the file"
            )
        arrays = load(reply)
        for array in arrays.values():
            array.flags.writeable = False
        value = cast(Arrays, MappingProxyType(arrays))
        return Released(
            value=value,
            operation_id=operation_id,
            previous=release.previous,
            head=release.head,
            entries=release.entries,
            signature=release.signature,
            seal=SEAL,
        )


def read_statement(path: Path) -> SpendStatement:
    """What a ledger file says its dataset has spent; the file is only read, and its chain is checked.

    Args:
        path: of the file.

    Raises:
        LedgerError: the file is missing, foreign or corrupt.
    """
    spend = Spend()
    with LedgerStore(path, read_only=True) as store:
        store.replay(spend.add)
    if spend.cap is None:
        raise LedgerError(f"{path} is an empty ledger; give the file of a dataset")
    spend.check_signature()
    return spend.statement()
