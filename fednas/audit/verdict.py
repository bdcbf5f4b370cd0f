"""What findings amount to: the bounds of a game, and whether a system is accused."""

from collections.abc import Iterator

from fednas.audit.findings import Check, Finding


def checks(finding: Finding) -> Iterator[Check]:
    """The checks that a finding stands for: itself, or that no bound of a game is above its claim."""
    if isinstance(finding, Check):
        yield finding
