"""Network cuts: devices in network namespaces lose the server at random, and the study ends well."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import pytest

from fednas.privacy.signing import TaskSigner
from server.kit import ServerKit
from simulations.__main__ import adjust
from simulations.flower_command import free_port
from simulations.scenarios import SCENARIOS
from tests.integration.chaos import (
    Fleet,
    make_folder,
    make_kits,
    prepare_flower,
    server_services,
    supernode,
)
from tests.integration.disturbed import NUM_SITES, Operator, disturb, hurried, make_run
from tests.integration.wires import NoNamespacesError, Wires, nginx, proxy

# Seconds; a SuperNode's lease is 60 s: after longer cuts it has to become known again.
CUTS: Sequence[float] = (2, 3, 3, 4, 5, 5, 7, 8, 10, 10, 12, 15, 20, 20, 25, 30, 40, 62, 66, 70)
# How many devices at once: mostly one, sometimes more than half of them, sometimes all.
WIDTHS: Sequence[int] = (1, 1, 1, 1, 1, 1, 2, 2, 2, 3)
_LOOK_S = 0.1


@pytest.fixture
def wires() -> Iterator[Wires]:
    if nginx() is None:
        pytest.skip("nginx is not installed")
    try:
        with Wires.strung(NUM_SITES) as strung:
            yield strung
    except NoNamespacesError as error:
        pytest.skip(str(error))


@final
class Cutter:
    """Cuts wires at random, each for the next of some times.

    Args:
        wires: which.
        cuts: seconds, one a cut.
        run: the run directory; nothing is cut before its first round is whole.
        seed: of the moments, and of who is cut off.
        longest_s: the longest pause between two cuts.
    """

    def __init__(
        self, wires: Wires, cuts: Sequence[float], run: Path, *, seed: int, longest_s: float
    ) -> None:
        self._wires = wires
        self._random = random.Random(seed)
        self._cuts = self._random.sample(cuts, len(cuts))
        self._run = run
        self._longest_s = longest_s
        self._mended: dict[int, float] = {}  # device that is cut off: until when
        self.played: list[str] = []

    def play(self, over: threading.Event) -> None:
        """Cut as often as asked, or until the study is over; nothing stays cut."""
        begin = time.monotonic()
        try:
            while not self._rounds() and not over.is_set():
                over.wait(_LOOK_S)
            for seconds in self._cuts:
                self._wait(self._random.uniform(0.5, self._longest_s), over)
                width = self._random.choice(WIDTHS)
                while not over.is_set() and NUM_SITES - len(self._mended) < width:
                    self._wait(_LOOK_S, over)
                if over.is_set():
                    return
                there = sorted(set(range(NUM_SITES)) - set(self._mended))
                for device in self._random.sample(there, width):
                    self._wires.cut(device)
                    self._mended[device] = time.monotonic() + seconds
                moment = f"{time.monotonic() - begin:7.1f} s  round {self._rounds() + 1}"
                self.played.append(f"{moment}  {width} of {NUM_SITES} cut off for {seconds:g} s")
            while self._mended and not over.is_set():
                self._wait(_LOOK_S, over)
        finally:
            self._mend(float("inf"))

    def _rounds(self) -> int:
        return len(list(self._run.glob("rounds/*.json")))

    def _wait(self, seconds: float, over: threading.Event) -> None:
        end = time.monotonic() + seconds
        while not over.is_set() and time.monotonic() < end:
            over.wait(_LOOK_S)
            self._mend(time.monotonic())

    def _mend(self, now: float) -> None:
        for device, due in list(self._mended.items()):
            if due <= now:
                self._wires.mend(device)
                del self._mended[device]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_a_study_ends_well_though_its_devices_are_cut_off_20_times(
    tmp_path: Path, wires: Wires, seed: int
) -> None:
    run, logs = tmp_path / "run", make_folder(tmp_path / "fleet" / "logs")
    server = ServerKit.prepare(
        tmp_path / "fleet" / "server", [wires.address], port=free_port(), public_port=free_port()
    )
    scenario = SCENARIOS["hospitals"]()
    sites = make_run(run, scenario, hurried(adjust(scenario.study, rounds=16), 45.0), server)
    kits = make_kits(tmp_path / "fleet", sites, f"{wires.address}:{server.public_port}", server)
    nodes = [supernode(name, kit, wires.prefix(i)) for i, (name, kit) in enumerate(kits.items())]
    flower = prepare_flower(tmp_path / "fleet", run, server, timeout_s=3600.0)
    fleet = Fleet(flower, [*server_services(server), *nodes], logs, seed=seed)
    cutter = Cutter(wires, CUTS, run, seed=seed, longest_s=25.0)
    operator = Operator(fleet, {name: kit.public_key for name, kit in kits.items()}, logs)
    with proxy(server, tmp_path / "fleet" / "proxy"):
        disturb(fleet, cutter, operator, run, TaskSigner.read(server.signing_key))
    assert len(cutter.played) == len(CUTS), "the study was over before the cuts"
