"""The four layers of an audit by name; no single one sees everything."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fednas.audit.canaries import play_games
from fednas.audit.conformance import check_conformance
from fednas.audit.findings import Finding, Layer
from fednas.audit.null_statistics import check_statistics
from fednas.audit.record_play import check_neighbours
from fednas.audit.subject import Subject

Attack = Callable[[Subject, Path], Iterator[Finding]]
"""Yields findings as they come, working in an empty folder of its own."""

ATTACKS: Mapping[Layer, Attack] = {
    "L0": check_conformance,
    "L1": check_neighbours,
    "L2": check_statistics,
    "L3": play_games,
}
TITLES: Mapping[Layer, str] = {
    "L0": "conformance: what the ledger says is what was released, and it holds under pressure",
    "L1": "record-play: one record more, with the noise taken away",
    "L2": "exact-null statistics: the noise and the coins are what was promised",
    "L3": "canaries: what an attacker extracts end to end",
}
