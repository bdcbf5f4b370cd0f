"""Flower's real processes killed and stopped at random, and a supervisor that plays systemd."""

import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, final

from client.kit import SiteKit
from fednas.config import load_site
from server.kit import ServerKit
from simulations.flower_command import FlowerCommand, free_port

APP_DIR: Final = Path(__file__).resolve().parents[2]

Kind = Literal["server app", "SuperLink", "SuperNode", "client task"]
PROGRAMS: Final[Mapping[Kind, str]] = {
    "server app": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "SuperNode": "flower-supernode",
    "client task": "flwr-clientapp",
}
_LIFE_S: Final = 6.0  # of a client task: most of it goes to imports
_LOOK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process that is started again when it ends.

    Args:
        name: its log's name.
        command: a program of this environment, or an absolute path, and its arguments.
        restart_s: the longest that it stays down; each time is drawn anew.
        environment: more variables for it.
    """

    name: str
    command: Sequence[str]
    restart_s: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One thing to do to a process of a kind.

    Args:
        kind: of the process; one of those that live is drawn.
        pause_s: None kills it; otherwise it is stopped for so long, and says nothing.
    """

    kind: Kind
    pause_s: float | None = None


@final
class Fleet:
    """A SuperLink, a SuperExec and a SuperNode a site, each started again whenever it ended.

    Args:
        flower: where they live.
        services: in the order of their start.
        logs: folder of their logs.
        seed: of how long each stays down.
    """

    def __init__(self, flower: FlowerCommand, services: Sequence[Service], logs: Path, *, seed: int) -> None:
        self.flower = flower
        self._services = services
        self._logs = logs
        self._random = random.Random(seed)
        self.starts: Counter[str] = Counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start all, and again whatever ends, until the block ends."""
        stop = threading.Event()
        with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
            stack.callback(self.flower.end_all)
            supervision = pool.submit(self._supervise, stop)
            try:
                yield
            finally:
                stop.set()
                supervision.result()

    def _supervise(self, stop: threading.Event) -> None:
        held = {service.name: self._start(service) for service in self._services}
        due: dict[str, float] = {}
        while not stop.wait(_LOOK_S):
            for service in self._services:
                name = service.name
                if held[name][1].poll() is None:
                    continue
                now = time.monotonic()
                if due.setdefault(name, now + self._random.uniform(0.0, service.restart_s)) <= now:
                    del due[name]
                    held[name][0].close()
                    held[name] = self._start(service)
        self.flower.end_all()  # all at once
        for stack, _ in held.values():
            stack.close()

    def _start(self, service: Service) -> tuple[ExitStack, Any]:
        self.starts[service.name] += 1
        stack = ExitStack()
        log = self._logs / f"{service.name}.log"
        return stack, stack.enter_context(self.flower.process(service.command, log, service.environment))

    def online(self) -> int:
        """How many SuperNodes the SuperLink knows to be there."""
        nodes = self.flower.ask(["supernode", "list", "fednas", "--format", "json"]).get("nodes")
        return sum(node.get("status") == "online" for node in nodes) if isinstance(nodes, list) else 0

    def runs(self) -> dict[str, str] | None:
        """The status of each run that was ever started; None when nobody answers."""
        runs = self.flower.ask(["ls", "fednas", "--format", "json"]).get("runs")
        if not isinstance(runs, list):
            return None
        return {str(run["run-id"]): str(run["status"]) for run in runs}

    def living(self, kind: Kind) -> list[int]:
        """The live processes of a kind."""
        return [pid for pid in self.flower.pids() if is_program(pid, PROGRAMS[kind])]


def is_program(pid: int, program: str) -> bool:
    """Whether a live process runs one of Flower's programs: a script that Python was given."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return len(words) > 1 and words[1].decode().rpartition("/")[2] == program


def local_fleet(
    folder: Path, run: Path, sites: Sequence[Path], server: ServerKit, *, seed: int, timeout_s: float
) -> tuple[Fleet, dict[str, SiteKit]]:
    """What `simulations.deployment` starts, as services that come back; the kit of each site by name."""
    kits = make_kits(folder, sites, f"127.0.0.1:{server.port}", server)
    flower = prepare_flower(folder, run, server, timeout_s)
    nodes = [supernode(name, kit) for name, kit in kits.items()]
    return Fleet(flower, [*server_services(server), *nodes], make_folder(folder / "logs"), seed=seed), kits


def make_kits(folder: Path, sites: Sequence[Path], address: str, server: ServerKit) -> dict[str, SiteKit]:
    return {
        (name := load_site(site).name): SiteKit.prepare(
            folder / "sites" / name,
            site,
            superlink=address,
            authority=server.authority,
            port=free_port(),
        )
        for site in sites
    }


def prepare_flower(folder: Path, run: Path, server: ServerKit, timeout_s: float) -> FlowerCommand:
    return FlowerCommand.prepare(
        APP_DIR,
        {
            "run-dir": str(run.resolve()),
            "signing-key-file": str(server.signing_key),
            "resume": True,  # what has not begun begins
        },
        home=folder / "flower",
        scratch=make_folder(folder / "scratch"),
        deadline=time.monotonic() + timeout_s,
        port=server.port,
        certificate=server.authority,
        environment={"OMP_NUM_THREADS": "1"},
    )


def server_services(server: ServerKit) -> list[Service]:
    return [
        Service(name="superlink", command=server.superlink, restart_s=5.0),
        Service(name="superexec", command=server.superexec, restart_s=5.0),
    ]


def supernode(name: str, kit: SiteKit, prefix: Sequence[str] = ()) -> Service:
    """A site's SuperNode; after a SIGKILL it is refused (305) until its lease of 60 s ends."""
    program, *arguments = kit.supernode
    if prefix:
        program = str(Path(sys.executable).parent / program)
    return Service(
        name=name,
        command=(*prefix, program, *arguments),
        restart_s=15.0,
        environment={"FLWR_HOME": str(kit.folder / "flower")},
    )


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@final
class Killer:
    """Kills and stops processes at random, one card after the other.

    Args:
        fleet: whose processes.
        deck: what happens, in this order.
        run: the run directory: whoever is ahead of the other, cards or rounds, waits.
        num_rounds: of the study.
        seed: of the moments and of who is hit.
        longest_s: the longest pause between two cards.
    """

    def __init__(
        self, fleet: Fleet, deck: Sequence[Card], run: Path, *, num_rounds: int, seed: int, longest_s: float
    ) -> None:
        self._fleet = fleet
        self._deck = deck
        self._run = run
        self._num_rounds = num_rounds
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self._stopped: dict[int, float] = {}  # descriptor of a stopped process: when it goes on
        self.kills: Counter[Kind] = Counter()
        self.pauses: Counter[Kind] = Counter()
        self.played: list[str] = []

    def play(self, over: threading.Event) -> None:
        """Play the whole deck, or until the study is over."""
        begin = time.monotonic()
        try:
            while not over.is_set() and not self._rounds():  # until then a study may begin without a site
                over.wait(_LOOK_S)
            for number, card in enumerate(self._deck):
                ahead = self._rounds() / self._num_rounds > number / len(self._deck)
                self._wait(self._random.uniform(0.5, self._longest_s) * (0.2 if ahead else 1.0), over)
                while not over.is_set() and not self._fleet.living(card.kind):
                    self._wait(_LOOK_S, over)
                if card.kind == "client task":
                    self._wait(self._random.uniform(0.0, _LIFE_S), over)
                while not over.is_set() and not self._hit(card):
                    self._wait(_LOOK_S, over)
                if over.is_set():
                    return
                what = card.kind if card.pause_s is None else f"{card.kind} stopped {card.pause_s:.0f} s"
                moment = f"{time.monotonic() - begin:7.1f} s  round {self._rounds() + 1}"
                self.played.append(f"{moment}  {what}")
            while self._stopped:
                self._wait(_LOOK_S, over)
        finally:
            self._continue(float("inf"))
            self.played.append(f"{sum(self.kills.values())} kills: {dict(self.kills)}")
            self.played.append(f"{sum(self.pauses.values())} stopped for a while: {dict(self.pauses)}")

    def _rounds(self) -> int:
        return len(list(self._run.glob("rounds/*.json")))

    def _wait(self, seconds: float, over: threading.Event) -> None:
        end = time.monotonic() + seconds
        while not over.is_set() and time.monotonic() < end:
            over.wait(min(_LOOK_S, seconds))
            self._continue(time.monotonic())

    def _continue(self, now: float) -> None:
        for descriptor, due in list(self._stopped.items()):
            if due <= now:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGCONT)
                os.close(descriptor)
                del self._stopped[descriptor]

    def _hit(self, card: Card) -> bool:
        """Do it to a live process of the kind; whether there was one, and it felt it."""
        living = self._fleet.living(card.kind)
        if not living:
            return False
        pid = self._random.choice(living)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        # The number may have gone to another process before it was held.
        if not is_program(pid, PROGRAMS[card.kind]):
            os.close(descriptor)
            return False
        if card.pause_s is not None:
            signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
            self._stopped[descriptor] = time.monotonic() + card.pause_s
            self.pauses[card.kind] += 1
            return True
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            dead = select.poll()
            dead.register(descriptor, select.POLLIN)
            assert dead.poll(10_000), "SIGKILL ends whatever it hits"
        finally:
            os.close(descriptor)
        self.kills[card.kind] += 1
        return True


def shuffled(kills: Mapping[Kind, int], pauses: Sequence[Card], *, seed: int) -> list[Card]:
    """A deck with so many kills of each kind, and these pauses, in random order."""
    deck = [Card(kind=kind) for kind, count in kills.items() for _ in range(count)] + list(pauses)
    random.Random(seed).shuffle(deck)
    return deck
