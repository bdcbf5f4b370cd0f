"""Carry an audit out: each layer in a folder of its own, findings as they come."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fednas.audit.findings import LAYERS, Finding, Game, Layer
from fednas.audit.layers import ATTACKS
from fednas.audit.scratch import scratch
from fednas.audit.subject import Subject
from fednas.audit.verdict import checks


def conduct(subject: Subject, layers: Iterable[Layer] = LAYERS) -> Iterator[tuple[Layer, Finding]]:
    """Run some layers, in the order of `LAYERS`; nothing of their rehearsals stays behind.

    Args:
        subject: what is audited.
        layers: which of them.

    Yields:
        A layer and what it found: its checks, and each game followed by the checks that it stands for.

    Raises:
        FednasError: a rehearsal could not be held; that is no finding.
    """
    wanted = set(layers)
    for layer in LAYERS:
        if layer not in wanted:
            continue
        with scratch("fednas-audit-") as folder:
            for finding in ATTACKS[layer](subject, Path(folder)):
                yield layer, finding
                if isinstance(finding, Game):
                    yield from ((layer, check) for check in checks(finding))
