"""Layer L3: canaries through the whole path from client to server, and what an attacker says of them."""

from collections.abc import Iterator
from pathlib import Path

from fednas.audit.findings import Finding
from fednas.audit.subject import Subject


def play_games(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    yield from ()
