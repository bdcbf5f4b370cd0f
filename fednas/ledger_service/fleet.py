"""Pull the ledgers of a fleet into a folder: each is verified, held against earlier pulls, then kept."""

import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fednas.errors import ConfigurationError, LedgerError
from fednas.ledger_service.client import (
    REFUSED,
    TAMPERED,
    Client,
    Identity,
    Limits,
    MovedOnError,
    PullError,
)
from fednas.operations import write_whole
from fednas.privacy.marks import FORMAT, Mark, encode_marks, parse_marks
from fednas.privacy.verify import LedgerTampered, verify
from fednas.statement import state

HOLDS: Final = "holds"
CONCURRENT: Final = 8
ATTEMPTS: Final = 3
_stating = threading.Lock()  # accountants hold the processor: side by side they would only repeat each other


@dataclass(frozen=True, kw_only=True)
class Target:
    """A site to pull from.

    Args:
        address: HOST:PORT.
        dataset: that must be there; None takes what the site names.
    """

    address: str
    dataset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """How the pull of one site ended.

    Args:
        address: of the site.
        verdict: `holds`, `tampered`, `refused` or `unreachable`.
        finding: why not, empty where it holds.
        dataset: its public name, empty where none was shown.
        statement: the document that follows from the pulled file; None where nothing is kept.
        mark: the state that was pulled; likewise.
    """

    address: str
    verdict: str
    finding: str = ""
    dataset: str = ""
    statement: Mapping[str, Any] | None = None
    mark: Mark | None = None

    @property
    def ok(self) -> bool:
        """Whether all that was asked holds."""
        return self.verdict == HOLDS


def pull(
    targets: Sequence[Target],
    identity: Identity,
    out: Path,
    *,
    marks: Mapping[str, Mark] | None = None,
    limits: Limits | None = None,
    done: Callable[[], object] = lambda: None,
) -> list[Pulled]:
    """Pull and verify ledgers; the failure of one site stops no other.

    Args:
        targets: the sites.
        identity: of the auditor.
        out: folder that keeps `<dataset>/ledger.sqlite`, `<dataset>/statement.json` and `marks.json`; a slash
            in a dataset's name is written %2F.
        marks: that somebody else kept; then every dataset must be among them.
        limits: on what one site may send.
        done: called after each site.

    Returns:
        The end of each, in the order of the targets.

    Raises:
        ConfigurationError: the folder cannot be used.

    Guarantees:
        - Only a verified ledger that goes on from the last kept one, under the same key, replaces it.
        - Each file appears whole or not at all.
        - Nothing a site sends decides on a path outside its own folder.
    """
    limits = limits or Limits()
    with _folder(out) as scratch:
        kept = _read_marks(out)
        pullers = ThreadPoolExecutor(CONCURRENT, thread_name_prefix="pull")
        with pullers:
            waiting = {
                pullers.submit(_pull, target, identity, limits, scratch / str(n), kept, marks): n
                for n, target in enumerate(targets)
            }
            found: dict[int, Pulled] = {}
            for future in as_completed(waiting):
                found[waiting[future]] = future.result()
                done()
        times = Counter(end.dataset for end in found.values() if end.dataset)
        ends = []
        for n, target in enumerate(targets):
            end = found[n]
            if end.mark is not None and times[end.dataset] > 1:
                end = _fail(
                    target, REFUSED, "another site names the same dataset: nothing is kept", end.dataset
                )
            elif end.mark is not None:
                _publish(scratch / str(n), out / folder_of(end.dataset))
                kept[end.dataset] = end.mark
            ends.append(end)
        document = json.dumps(encode_marks(kept), indent=1, sort_keys=True) + "\n"
        write_whole(out / "marks.json", document.encode())
    return ends


def folder_of(dataset: str) -> str:
    """The name of a dataset's folder: one part, and no two datasets share it."""
    return dataset.replace("/", "%2F")


def _fail(target: Target, verdict: str, finding: str, dataset: str = "") -> Pulled:
    return Pulled(address=target.address, verdict=verdict, finding=finding, dataset=dataset)


def _pull(
    target: Target,
    identity: Identity,
    limits: Limits,
    scratch: Path,
    kept: Mapping[str, Mark],
    marks: Mapping[str, Mark] | None,
) -> Pulled:
    dataset = ""
    try:
        with Client(target.address, identity, limits) as client:
            for _ in range(ATTEMPTS):
                shown = client.head()
                dataset = shown.dataset
                if target.dataset not in (None, dataset) or folder_of(dataset) == "marks.json":
                    raise PullError(REFUSED, "it keeps the ledger of another dataset than it should")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                file = scratch / "ledger.sqlite"
                client.fetch(file)
                mark = _check(file, dataset, shown.head, shown.entries, kept, marks)
                try:
                    stated = client.statement(mark.head)
                except MovedOnError:
                    continue
                return _stated(target, file, dataset, mark, stated)
            raise PullError(REFUSED, "its ledger grows faster than it can be pulled")
    except PullError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        return _fail(target, error.verdict, error.finding, dataset)


def _check(
    file: Path,
    dataset: str,
    head: str,
    entries: int,
    kept: Mapping[str, Mark],
    marks: Mapping[str, Mark] | None,
) -> Mark:
    """Verify a pulled file, and hold it against all that is known of its dataset."""
    try:
        found = verify(file, expected_head=head)
        if found.dataset != dataset or found.entries < entries:
            raise PullError(TAMPERED, "its entries are not those of the head that it showed")
        if marks is not None and dataset not in marks:
            raise PullError(
                TAMPERED, "the given marks know no such dataset: the server never saw this ledger"
            )
        for source in (kept, marks or {}):
            mark = source.get(dataset)
            if mark is None:
                continue
            if found.entries < mark.entries:
                raise PullError(
                    TAMPERED, f"it has {found.entries} entries and once had {mark.entries}: it was cut back"
                )
            verify(file, expected_head=mark.head, expected_signer=mark.signer)
    except LedgerTampered as error:
        raise PullError(TAMPERED, str(error).replace(str(file), "the ledger")) from error
    return Mark(signer=found.signer, entries=found.entries, head=found.head)


def _stated(target: Target, file: Path, dataset: str, mark: Mark, stated: bytes) -> Pulled:
    """What follows from the pulled file itself is kept; the site's own words must be the same."""
    try:
        with _stating:
            statement = state(file)
    except LedgerError as error:
        raise PullError(TAMPERED, str(error).replace(str(file), "the ledger")) from error
    file.with_name("statement.json").write_bytes(statement.document)
    same = stated == statement.document
    return Pulled(
        address=target.address,
        verdict=HOLDS if same else TAMPERED,
        finding="" if same else "the ledger holds, but the site states something else of it",
        dataset=dataset,
        statement=json.loads(statement.document),
        mark=mark,
    )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """The folder of a fleet, held against other pulls, with a place for drafts that goes afterwards."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with tempfile.TemporaryDirectory(prefix=".pull-", dir=out) as scratch:
                yield Path(scratch)
        finally:
            os.close(descriptor)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"another pull is at work in {out}; wait for it or give another --out"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot write to {out}: {error.strerror}; give another --out") from error


def _publish(draft: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("ledger.sqlite", "statement.json"):
        with open(draft / name, "rb") as file:
            os.fsync(file.fileno())
        (draft / name).replace(folder / name)


def _read_marks(out: Path) -> dict[str, Mark]:
    path = out / "marks.json"
    if not path.exists():
        return {}
    try:
        return parse_marks(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} does not hold marks of format {FORMAT}; restore it: without it an older copy of a "
            "ledger is not noticed"
        ) from error
