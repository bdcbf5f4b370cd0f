"""Layer L0: what the ledger says is what was released, recomputed and put under pressure."""

from collections.abc import Iterator
from pathlib import Path

from fednas.audit.findings import Finding
from fednas.audit.subject import Subject


def check_conformance(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    yield from ()
