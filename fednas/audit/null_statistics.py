"""Layer L2: whether noise and coins are what was promised, where their distribution is known exactly."""

from collections.abc import Iterator
from pathlib import Path

from fednas.audit.findings import Finding
from fednas.audit.subject import Subject


def check_statistics(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    yield from ()
