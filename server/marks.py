"""High-water marks: where each site's ledger was last seen, so that an older copy of one is noticed."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

from fednas.errors import LedgerRolledBackError, RunDirectoryError
from fednas.privacy.marks import FORMAT, Mark, encode_marks, parse_marks
from server.checkpoint import read_json, write_json


def check_shown(mark: Mark | None, shown: Mark) -> None:
    """Compare the state in which a ledger is now with the last one that was seen.

    Whether a longer ledger contains the mark only the site itself can tell: every task carries the mark, and
    the site refuses it where its ledger has never been there.

    Args:
        mark: what the server remembers; None before the first answer, which pins the key.
        shown: what the site says now.

    Raises:
        LedgerRolledBackError: the ledger has another key, is shorter, or ends otherwise at the same length.
    """
    if mark is None or shown == mark:
        return
    if shown.signer != mark.signer:
        raise LedgerRolledBackError("its ledger is signed by another key than before")
    if shown.entries <= mark.entries:
        raise LedgerRolledBackError(
            f"its ledger has {shown.entries} entries and once had {mark.entries}"
            if shown.entries < mark.entries
            else f"its ledger has another history of {mark.entries} entries than before"
        )


def check_answered(mark: Mark | None, answered: Mark, *, repeats_after: int | None = None) -> None:
    """Compare the state that an answer's release made with the last one that was seen.

    A new release makes a ledger longer. An answer at or below the mark is the stored reply of a round that
    was asked before a crash: what the mark came from, to the last bit, or, where other studies went on
    meanwhile, from before it. In a round that nobody asked before it is a reply that was used already.

    Args:
        mark: the last state that this server saw; None before the first answer.
        answered: the state that the answer's signature vouches for.
        repeats_after: for a round that may have been asked before, how many entries the ledger had at the
            study's answer before that; None where no round is repeated.

    Raises:
        LedgerRolledBackError: the ledger has another key, or released again what it had released.
    """
    if mark is None or (answered == mark and repeats_after is not None):
        return
    if answered.signer != mark.signer:
        raise LedgerRolledBackError("its ledger is signed by another key than before")
    fresh = answered.entries > mark.entries
    repeated = repeats_after is not None and repeats_after < answered.entries < mark.entries
    if not fresh and not repeated:
        raise LedgerRolledBackError(
            f"it answered from a ledger of {answered.entries} entries that once had {mark.entries}"
        )


@final
class Marks:
    """The marks of one file, by the public name of the dataset.

    Args:
        path: JSON, `{"format": 1, "datasets": {name: {"signer", "entries", "head"}}}`; made when something is
            kept. Servers that share it need not know of each other.

    Raises:
        RunDirectoryError: the file cannot be read, or is not of this form.

    Guarantees:
        - What `keep` returns from is on the disk, whole, whatever happens afterwards.
        - No mark of the file ever goes back, and a dataset's key never changes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks = self._read()

    def of(self, dataset: str) -> Mark | None:
        """The last state of a dataset's ledger that this server, or one before it, saw."""
        return self._marks.get(dataset)

    def keep(self, seen: Mapping[str, Mark]) -> None:
        """Remember the states of some ledgers durably, each where it is newer.

        Raises:
            RunDirectoryError: the disk refuses, the file was damaged meanwhile, or another server that shares
                it saw another key.
        """
        changed = {name: mark for name, mark in seen.items() if _is_newer(mark, self._marks.get(name))}
        if not changed:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._path.parent):
                stored = self._read()
                for name, mark in changed.items():
                    other = stored.get(name)
                    if other is not None and other.signer != mark.signer:
                        raise RunDirectoryError(
                            f"{self._path} remembers another ledger of {name} than the one that answered; "
                            "find out which is the dataset's before going on"
                        )
                    if _is_newer(mark, other):
                        stored[name] = mark
                write_json(self._path, encode_marks(stored))
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write {self._path}: {error.strerror}; nothing is merged that it does not hold"
            ) from error
        # Not what others saw meanwhile: two studies that run at once overtake each other.
        self._marks |= changed

    def _read(self) -> dict[str, Mark]:
        if not self._path.exists():
            return {}
        value = read_json(self._path)
        try:
            return parse_marks(value)
        except ValueError as error:
            raise RunDirectoryError(
                f"{self._path} does not hold high-water marks of format {FORMAT}; restore it: without it an "
                "older copy of a ledger is not noticed"
            ) from error


def _is_newer(mark: Mark, other: Mark | None) -> bool:
    return other is None or mark.entries > other.entries


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other servers out of a folder's marks; a crash lets go."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
