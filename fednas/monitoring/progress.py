"""How a run is doing, as one value: read from its directory while a server may be writing there."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar, final

from fednas.config import StudyConfig, load_sites, load_study
from fednas.errors import FednasError, RunDirectoryError
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import Step, agenda, candidates_per_tier

_T = TypeVar("_T")
_OUTCOME: Final = re.compile(r"ok|[A-Z_]{1,40}")
_MALFORMED: Final = (FednasError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
_SLOW: Final = 5
"""A round that takes so many times the median, and the deadline, is told to whoever watches."""


@dataclass(frozen=True, kw_only=True)
class SiteRound:
    """What became of one site in one round.

    Args:
        outcome: "ok", or the constant code of why there is no answer.
        sent_bytes: of the request.
        received_bytes: of the reply, whatever was in it.
    """

    outcome: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A whole round, as the server wrote it down.

    Args:
        step: which round it was.
        ended_s: when it was written down, in seconds of Unix time.
        sites: by name.
        fitness: by tier, the released fitness of what is chosen for it, and its standard deviation; empty for
            a round that evaluates nothing.
    """

    step: Step
    ended_s: float
    sites: Mapping[str, SiteRound]
    fitness: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class SiteProgress:
    """A site of a run, over all rounds that were completed.

    Args:
        site: its name.
        tier: of its device.
        outcomes: how often what became of it.
        last: the latest of them; "" before the first.
        last_round: the round of it; 0 before the first.
        sent_bytes: to it.
        received_bytes: from it.
        epsilon_planned: what its plan costs at the most: the number to state, whenever the study ends.
        epsilon_so_far: what the rounds cost by the plan's schedule, the one under way included. The site's
            own ledger has the last word: a crash is charged again.
    """

    site: str
    tier: str
    outcomes: Mapping[str, int] = field(default_factory=dict)
    last: str = ""
    last_round: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    epsilon_planned: float
    epsilon_so_far: float

    @property
    def replies(self) -> int:
        """Answers that the server took."""
        return self.outcomes.get("ok", 0)

    @property
    def rejects(self) -> Mapping[str, int]:
        """By code, how often there was no answer that could be taken."""
        return {code: number for code, number in self.outcomes.items() if code != "ok"}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run, as far as it is.

    Args:
        study: its name.
        agenda: all rounds of the study.
        started_s: when the run directory was made, in seconds of Unix time.
        rounds: those that were completed, in their order.
        sites: in the order of their names; empty before the sites were met.
        fitness: by tier, the latest released fitness of what is chosen for it, and its standard deviation.
        deadline_s: how long a round waits for its sites.
        complete: whether its results are written.
    """

    study: str
    agenda: tuple[Step, ...]
    started_s: float
    rounds: tuple[RoundRecord, ...]
    sites: tuple[SiteProgress, ...]
    fitness: Mapping[str, tuple[float, float]]
    deadline_s: float
    complete: bool

    @property
    def next_step(self) -> Step | None:
        """The round that is under way, or would be if a server ran; None after the last."""
        done = {record.step.round for record in self.rounds}
        return next((step for step in self.agenda if step.round not in done), None)

    @property
    def last_s(self) -> float:
        """When something was last completed, in seconds of Unix time."""
        return self.rounds[-1].ended_s if self.rounds else self.started_s

    @property
    def round_s(self) -> float | None:
        """Median seconds of a round; None before the second one ended: the first waits for the sites."""
        ends = [record.ended_s for record in self.rounds]
        pauses = [after - before for before, after in pairwise(ends)]
        return median(pauses) if pauses else None

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds until the last round ends, if each takes the median; None while that is not known."""
        if self.next_step is None or self.round_s is None:
            return None
        left = len(self.agenda) - len(self.rounds)
        return left * self.round_s - min(max(now_s - self.last_s, 0.0), self.round_s)

    def is_late(self, now_s: float) -> bool:
        """Whether the round under way takes so long that its server may have stopped."""
        usual = max(self.deadline_s, _SLOW * (self.round_s or 0.0))
        return not self.complete and now_s - self.last_s > usual


@final
class RunReader:
    """Reads a run directory again and again; a file that did not change is read once.

    Args:
        path: of the run directory; a server may be at work in it.

    Raises:
        RunDirectoryError: there is no run.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "run.json").is_file() or not (path / "study.toml").is_file():
            raise RunDirectoryError(
                f"{path} is not a run directory: study.toml or run.json is missing; give the folder of a run"
            )
        self.path = path
        self._known: dict[Path, tuple[tuple[int, int, int], Any]] = {}

    def read(self) -> Progress:
        """The run as it is now.

        Raises:
            RunDirectoryError: a file of it is malformed, or the run is gone.
            ConfigurationError: its study is malformed.
        """
        study = load_study(self.path / "study.toml")
        steps = {step.round: step for step in agenda(study)}
        manifest = self._json("run.json", _manifest)
        plans = self._json("plan.json", _plans) if (self.path / "plan.json").exists() else _Plans()
        rounds = [
            replace(self._json(f"rounds/{file.name}", lambda v: _round(v, steps)), ended_s=ended)
            for file, ended in self._rounds()
        ]
        rounds.sort(key=lambda record: record.step.round)
        fitness: dict[str, tuple[float, float]] = {}
        for record in rounds:
            fitness.update(record.fitness)
        complete = len(rounds) == len(steps) and (self.path / "result.json").exists()
        return Progress(
            study=study.name,
            agenda=tuple(steps.values()),
            started_s=manifest.started_s or (self.path / "run.json").stat().st_mtime,
            rounds=tuple(rounds),
            sites=_sites(study, plans, rounds, self._seeded(), test_noise=manifest.test_noise, over=complete),
            fitness=fitness,
            deadline_s=study.federation.deadline_s,
            complete=complete,
        )

    def _rounds(self) -> list[tuple[Path, float]]:
        try:
            return [(path, path.stat().st_mtime) for path in sorted((self.path / "rounds").glob("*.json"))]
        except OSError as error:
            raise self._unreadable("rounds") from error

    def _seeded(self) -> set[str]:
        """The sites whose noise is known to be reproducible; a deployed run does not hold its sites."""
        return {site.name for site in load_sites(self.path) if site.test_seed is not None}

    def _json(self, name: str, parse: Callable[[dict[str, Any]], _T]) -> _T:
        """What a JSON file says, parsed once for every version of it."""
        path = self.path / name
        try:
            status = path.stat()
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            if path in self._known and self._known[path][0] == version:
                found: _T = self._known[path][1]
                return found
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            parsed = parse(value)
        except (*_MALFORMED, OSError) as error:
            raise self._unreadable(name) from error
        self._known[path] = (version, parsed)
        return parsed

    def _unreadable(self, name: str) -> RunDirectoryError:
        return RunDirectoryError(
            f"{self.path / name} is missing or malformed; restore it, or look at another run"
        )


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    started_s: float | None
    test_noise: bool


@dataclass(frozen=True, kw_only=True)
class _Plans:
    """By site its plan, what that claims, and the tier of its device."""

    num_tiers: int = 1
    sites: Mapping[str, tuple[PrivacyPlan, float, str]] = field(default_factory=dict)


def _manifest(value: dict[str, Any]) -> _Manifest:
    started = value.get("started")
    moment = None if started is None else datetime.fromisoformat(started)
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return _Manifest(
        started_s=None if moment is None else moment.timestamp(), test_noise=value.get("test_noise") is True
    )


def _plans(value: dict[str, Any]) -> _Plans:
    plans: dict[str, tuple[PrivacyPlan, float]] = {}
    for entry in value["plans"]:
        plan, claim = PrivacyPlan.from_json(entry["canonical"]), float(entry["claim"])
        if plan.id != entry["id"] or math.isnan(claim) or claim < 0.0:
            raise ValueError("it holds a plan under another name, or without its epsilon")
        plans[plan.id] = (plan, claim)
    number = value["num_tiers"]
    if type(number) is not int or number < 1:
        raise ValueError("it counts no tiers")
    sites = {
        _name(site): (*plans[entry["plan"]], _shown(entry["facts"]["device"]["tier"]))
        for site, entry in sorted(value["sites"].items())
    }
    return _Plans(num_tiers=number, sites=sites)


def _round(value: dict[str, Any], steps: Mapping[int, Step]) -> RoundRecord:
    step = steps[_count(value["round"])]
    if step.kind != value["kind"]:
        raise ValueError("the study has no such round")
    trials = {
        trial["id"]: (float(trial["fitness"]), float(trial["std"])) for trial in value.get("trials", [])
    }
    chosen = value.get("chosen", {})
    return RoundRecord(
        step=step,
        ended_s=0.0,
        sites={_name(site): _site_round(entry) for site, entry in value["sites"].items()},
        fitness={_shown(tier): trials[a] for tier, a in chosen.items() if a in trials},
    )


def _site_round(entry: Mapping[str, Any]) -> SiteRound:
    if _OUTCOME.fullmatch(entry["outcome"]) is None:
        raise ValueError("an outcome is no code")
    return SiteRound(
        outcome=entry["outcome"],
        sent_bytes=_count(entry.get("sent_bytes", 0)),
        received_bytes=_count(entry.get("received_bytes", 0)),
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("expected a count")
    return value


def _name(value: str) -> str:
    if not 0 < len(value) <= 80 or not value.isprintable():
        raise ValueError("expected the name of a site")
    return value


def _shown(value: str) -> str:
    """A word of a site's owner, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in value[:80])


def _sites(
    study: StudyConfig,
    plans: _Plans,
    rounds: list[RoundRecord],
    seeded: set[str],
    *,
    test_noise: bool,
    over: bool,
) -> tuple[SiteProgress, ...]:
    found = []
    for site, (plan, claim, tier) in plans.sites.items():
        asked = [(record.step, record.sites[site]) for record in rounds if site in record.sites]
        kinds: Counter[str] = Counter(step.kind for step, _ in asked)
        done = {record.step.round for record in rounds}
        under_way = None if over else next((s for s in agenda(study) if s.round not in done), None)
        if under_way is not None:
            kinds[under_way.kind] += 1
        infinite = test_noise or site in seeded
        found.append(
            SiteProgress(
                site=site,
                tier=tier,
                outcomes=dict(Counter(entry.outcome for _, entry in asked)),
                last=asked[-1][1].outcome if asked else "",
                last_round=asked[-1][0].round if asked else 0,
                sent_bytes=sum(entry.sent_bytes for _, entry in asked),
                received_bytes=sum(entry.received_bytes for _, entry in asked),
                epsilon_planned=math.inf if infinite else claim,
                epsilon_so_far=math.inf
                if infinite
                else _so_far(plan, _amounts(study, plans.num_tiers, kinds)),
            )
        )
    return tuple(found)


def _amounts(study: StudyConfig, num_tiers: int, kinds: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """By allowance, the most releases that so many rounds of each kind ask for."""
    counts = kinds.get("generation", 0) * candidates_per_tier(study, num_tiers) + kinds.get("report", 0)
    return (
        ("search", kinds.get("search", 0) * study.training.steps_per_round),
        ("alphas", kinds.get("search", 0)),
        ("fitness", counts * num_tiers),
        ("final", kinds.get("final", 0) * study.training.steps_per_round),
    )


@lru_cache(maxsize=256)
def _so_far(plan: PrivacyPlan, amounts: tuple[tuple[str, int], ...]) -> float:
    """Epsilon of a part of a plan: accountants are slow, and sites of one plan share it."""
    most = dict(amounts)
    part = tuple(
        replace(allowance, event=allowance.event.scaled(min(most[allowance.name], allowance.amount)))
        for allowance in plan.allowances
        if most[allowance.name] > 0
    )
    return replace(plan, allowances=part).claim
