"""Layer L3: canaries through the whole path from client to server, and what an attacker says of them."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fednas.audit.attacks import ArchitectureAttack, FitnessAttack, Floats, Releases, WeightsAttack
from fednas.audit.findings import Game
from fednas.audit.rehearsal import Records, Rehearsal
from fednas.audit.subject import Subject
from fednas.config import StudyConfig
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan
from fednas.wire import Task

_MOST_RUNS = 1000  # of a mechanism whose runs have few canaries, one hundredth of a second each


class Attack(Protocol):
    """An attack on the releases of one mechanism."""

    @property
    def stream(self) -> str:
        """Where its canaries are, if they are: also the mechanism's name."""
        ...

    @property
    def adversary(self) -> str:
        """What it assumes, a sentence."""
        ...

    @property
    def study(self) -> StudyConfig:
        """What the server sends."""
        ...

    @property
    def plan(self) -> PrivacyPlan:
        """What the site agrees to: the stream spends the whole claim."""
        ...

    @property
    def declared_size(self) -> int:
        """Public, and not the number of canaries that are members."""
        ...

    @property
    def records(self) -> Records:
        """The canaries that may be in one run's site."""
        ...

    def tasks(self, site: Rehearsal) -> Sequence[Task]:
        """Everything that a site is asked in one run."""
        ...

    def scores(self, runs: Releases) -> Floats:
        """A score for each canary of each run.

        Args:
            runs: what was released in each.

        Returns:
            Shape (runs * canaries,), in standard deviations of the noise.
        """
        ...


def play_games(subject: Subject, folder: Path) -> Iterator[Game]:
    """Yield a game for each mechanism, at the subject's claim.

    The weights have all canaries in one run; an architecture gradient and a count have few dimensions, so
    that canaries are divided among many runs, each by a site with a ledger of its own. Every one spends the
    whole claim: what is read is everything that leaves of its stream.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    budget = PrivacyBudget(epsilon=subject.claim, delta=subject.study.privacy.delta)
    yield play(WeightsAttack(subject=subject, budget=budget), subject, folder)
    few = min(subject.canaries, _MOST_RUNS)
    architecture = ArchitectureAttack(subject=subject, budget=budget)
    yield play(architecture, subject, folder, runs=-(-few // len(architecture.records[0])))
    yield play(FitnessAttack(subject=subject, budget=budget), subject, folder, runs=few)


def play(attack: Attack, subject: Subject, folder: Path, *, runs: int = 1) -> Game:
    """Let a coin decide of each canary whether it is a record, ask a site, and score what it answers.

    Args:
        attack: what is asked, and how answers are read.
        subject: the claim, and the seed of coins.
        folder: for the files of rehearsals, which are gone afterwards.
        runs: of new sites.
    """
    x, y = attack.records
    members = coins(attack.stream, subject.seed, (runs, len(x)))
    releases = []
    for chosen in members:
        place = folder / attack.stream
        with Rehearsal(
            place, study=attack.study, plan=attack.plan, declared_size=attack.declared_size
        ) as site:
            site.fill({attack.stream: (x[chosen], y[chosen])})
            releases.append([site.ask(task).arrays for task in attack.tasks(site)])
        shutil.rmtree(place)
    return Game(
        mechanism=attack.stream,
        claim=subject.claim,
        delta=subject.study.privacy.delta,
        members=members.ravel(),
        scores=attack.scores(releases),
        runs=runs,
        adversary=attack.adversary,
    )


def coins(stream: str, seed: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Who is a member: fair coins that anybody draws again from a public seed, and that no site knows.

    Args:
        stream: of the canaries.
        seed: of the subject.
        shape: of the answer; only its product matters.
    """
    generator = np.random.default_rng([*b"coins", *stream.encode(), seed])
    return np.asarray(generator.random(shape) < 0.5)
