"""Where made-up sites keep their files: in memory if it has a file system, as they outlive nothing."""

import os
import tempfile
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")


def scratch(prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A folder that is gone when its block ends.

    A ledger waits for its disk at every commit, and an audit opens a thousand of them: what a disk promises
    is checked by what a ledger asks of it, not by waiting.

    Args:
        prefix: of its name.
    """
    # Whoever sets TMPDIR, as a mutant's child does, means it.
    memory = "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK | os.X_OK)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=_MEMORY if memory else None)
