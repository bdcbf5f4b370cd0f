"""Layer L0: what the ledger says is what was released, recomputed and put under pressure."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fednas.audit.accounts import ACCOUNTS, the_plan_costs_what_it_says
from fednas.audit.conversations import sites_answer
from fednas.audit.drills import DRILLS, check
from fednas.audit.findings import Check, Finding
from fednas.audit.subject import Subject
from fednas.errors import FednasError


def check_conformance(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    for drill in (*DRILLS, *ACCOUNTS):
        yield from _held(drill, folder / drill.__name__)
    for scene in (sites_answer, the_plan_costs_what_it_says):
        yield from _held(partial(scene, subject), folder / scene.__name__)


def _held(drill: Callable[[Path], Iterator[Check]], folder: Path) -> Iterator[Check]:
    """A drill's checks; a correct system raises nothing in it."""
    folder.mkdir()
    try:
        yield from drill(folder)
    except FednasError as error:
        yield check("what a rehearsal may ask is answered", False, f"{type(error).__name__}: {error}")
