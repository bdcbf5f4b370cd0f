"""Sites that say nothing, or say it too late: rounds end by deadline and quorum, and so does the run."""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
from flwr.app import Message, RecordDict

from fednas.config import StudyConfig
from fednas.errors import ExchangeError
from fednas.wire import Task, decode_task
from server import exchange
from server.app import conduct
from simulations.loopback import InProcessGrid, LocalGrid
from tests.server.stubs import Killed, Stubs, facts, folder, honest, kinds, outcomes, run, same, signer
from tests.simulations import tiny

DEADLINE_S = 60.0
Delay = Callable[[str, int], float]


@final
class JumpingClock:
    """Time that passes in pauses alone: a test neither waits nor races."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def pause(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> JumpingClock:
    clock = JumpingClock()
    monkeypatch.setattr(exchange, "MonotonicClock", lambda: clock)
    return clock


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    return tiny.study(federation={"deadline_s": DEADLINE_S})


@final
class SlowGrid(LocalGrid):
    """Passes everything on to stub sites, but some answers stay away.

    Args:
        stubs: the sites.
        delay_s: of the answer of a site in a round, in seconds; infinite for one that never comes.
        clock: the server's.
        there: whether a site is on the network at all, by its name and the last round that was asked.
        mute: sites that do not even greet.
    """

    def __init__(
        self,
        stubs: Stubs,
        delay_s: Delay,
        clock: JumpingClock,
        there: Callable[[str, int], bool] = lambda site, last: True,
        mute: Collection[str] = (),
    ) -> None:
        self._mute = mute
        self._there = there
        self._last = 0
        self._clock = clock
        self._behind: InProcessGrid = stubs.grid()
        super().__init__({node: {} for node in self._behind.get_node_ids()})
        self._names = {i + 1: fact.site for i, fact in enumerate(stubs.facts)}
        self._delay_s = delay_s
        self._due: dict[str, float] = {}

    def get_node_ids(self) -> list[int]:
        return [node for node, site in self._names.items() if self._there(site, self._last)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        ids = self._behind.push_messages(sent)
        for identity, message in zip(ids, sent, strict=True):
            site = self._names[message.metadata.dst_node_id]
            if message.metadata.message_type == "query.hello":
                self._due[identity] = math.inf if site in self._mute else 0.0
            else:
                task = decode_task(message.content)
                self._last = task.round
                self._due[identity] = self._clock.now() + self._delay_s(site, task.round)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now = self._clock.now()
        return list(self._behind.pull_messages([i for i in message_ids if self._due.get(i, 0.0) <= now]))

    def _accept(self, message: Message) -> None:
        raise AssertionError("messages go to the grid behind")


def test_a_silent_site_is_late_in_its_rounds_and_the_network_is_the_one_without_it(
    study: StudyConfig, tmp_path: Path, clock: JumpingClock
) -> None:
    stubs = Stubs(facts=facts(study))
    grid = SlowGrid(stubs, lambda site, _: math.inf if site == "bravo" else 0.0, clock)
    silent = folder(tmp_path / "silent", study)
    completed = conduct(grid, silent, resume=False)
    assert clock.now() == pytest.approx(6 * DEADLINE_S), "a deadline a round"
    assert [outcomes(silent, n) for n in range(1, 7)] == [
        {"alpha": "ok", "bravo": "LATE", "cobra": "ok"} for _ in range(6)
    ]
    gone = folder(tmp_path / "gone", study)
    away = Stubs(facts=tuple(fact for fact in facts(study) if fact.site != "bravo"))
    assert same(completed, run(away, gone))


def test_an_answer_after_the_deadline_is_merged_in_no_round(
    study: StudyConfig, tmp_path: Path, clock: JumpingClock
) -> None:
    stubs = Stubs(facts=facts(study))
    slow = folder(tmp_path / "slow", study)
    completed = conduct(SlowGrid(stubs, _alpha_in_round_2(1.5 * DEADLINE_S), clock), slow, resume=False)
    assert outcomes(slow, 2)["alpha"] == "LATE"
    assert all(outcomes(slow, number)["alpha"] == "ok" for number in (1, 3, 4, 5, 6))
    assert len(kinds(stubs.tasks, "alpha")) == 6, "it is asked again in the next round"
    never = folder(tmp_path / "never", study)
    silent = SlowGrid(Stubs(facts=facts(study)), _alpha_in_round_2(math.inf), clock)
    assert same(completed, conduct(silent, never, resume=False))


def _alpha_in_round_2(delay_s: float) -> Delay:
    return lambda site, number: delay_s if (site, number) == ("alpha", 2) else 0.0


def test_a_round_goes_on_with_half_of_its_sites_and_not_with_fewer(
    tmp_path: Path, clock: JumpingClock
) -> None:
    tiers = dict.fromkeys(("alpha", "bravo", "cobra", "delta"), "large")
    study = tiny.study(federation={"deadline_s": DEADLINE_S})
    told = facts(study, tiers)
    half = folder(tmp_path / "half", study)
    two: Delay = lambda site, _: 0.0 if site in ("alpha", "delta") else math.inf  # noqa: E731
    conduct(SlowGrid(Stubs(facts=told), two, clock), half, resume=False)
    assert all(list(outcomes(half, n).values()).count("LATE") == 2 for n in range(1, 7))

    fewer = folder(tmp_path / "fewer", study)
    one: Delay = lambda site, number: 0.0 if site == "alpha" or number < 3 else math.inf  # noqa: E731
    with pytest.raises(ExchangeError, match="1 of 4 sites answered"):
        conduct(SlowGrid(Stubs(facts=told), one, clock), fewer, resume=False)
    assert not (fewer / "rounds" / "00003.json").exists()
    back = run(Stubs(facts=told), fewer, resume=True)
    whole = run(Stubs(facts=told), folder(tmp_path / "whole", study))
    assert same(back, whole), "what was lost is asked again, and nothing else is"


# Sites that were away when a run was taken up again


def begun(study: StudyConfig, path: Path, last: int) -> Path:
    """A run that was killed in a round."""

    def dies(site: str, task: Task) -> RecordDict:
        if task.round == last:
            raise Killed
        return honest(site, task)

    with pytest.raises(Killed):
        run(Stubs(facts=facts(study), reply=dies), folder(path, study))
    return path


def test_a_site_that_was_away_is_asked_again_once_it_is_there(
    study: StudyConfig, tmp_path: Path, clock: JumpingClock
) -> None:
    path = begun(study, tmp_path / "back", 3)
    grid = SlowGrid(
        Stubs(facts=facts(study)), lambda *_: 0.0, clock, lambda site, last: site != "bravo" or last >= 3
    )
    completed = conduct(grid, path, resume=True)
    assert [("bravo" in outcomes(path, n)) for n in range(1, 7)] == [True, True, False, False, True, True]
    assert outcomes(path, 5)["bravo"] == "ok"
    assert completed.coordinator.refused == {}
    silent = SlowGrid(
        Stubs(facts=facts(study)),
        lambda site, number: math.inf if site == "bravo" and number in (3, 4) else 0.0,
        clock,
    )
    assert same(completed, conduct(silent, begun(study, tmp_path / "silent", 3), resume=True))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signer": signer("mallory").public_key}, "AWAY"),
        ({"dataset": "tiny/other"}, "AWAY"),
        ({"protocol": 1}, "AWAY"),
        ({"entries": 1}, "LEDGER_ROLLED_BACK"),
    ],
)
def test_who_comes_in_the_place_of_a_site_that_was_away_is_asked_nothing(
    study: StudyConfig, tmp_path: Path, clock: JumpingClock, changes: dict[str, Any], code: str
) -> None:
    path = begun(study, tmp_path / "run", 3)
    others = tuple(replace(f, **changes) if f.site == "bravo" else f for f in facts(study))
    stubs = Stubs(facts=others)
    grid = SlowGrid(stubs, lambda *_: 0.0, clock, lambda site, last: site != "bravo" or last >= 3)
    completed = conduct(grid, path, resume=True)
    assert kinds(stubs.tasks, "bravo") == []
    assert completed.coordinator.refused == {"bravo": code}


def test_a_silent_stranger_takes_no_part_in_a_round(
    study: StudyConfig, tmp_path: Path, clock: JumpingClock
) -> None:
    """A node that the SuperLink still holds for alive, as it does for a minute after a site's death."""
    path = begun(study, tmp_path / "run", 3)
    stubs = Stubs(facts=facts(study))
    grid = SlowGrid(
        stubs, lambda *_: 0.0, clock, lambda site, last: site != "bravo" or last >= 3, mute={"bravo"}
    )
    conduct(grid, path, resume=True)
    assert all(set(outcomes(path, n).values()) == {"ok"} for n in range(3, 7))
    assert kinds(stubs.tasks, "bravo") == []
