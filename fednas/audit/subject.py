"""What is audited: a study, and what attacks on it may assume."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from fednas.config import (
    DataSchema,
    PrivacySection,
    ScheduleSection,
    SearchSection,
    StudyConfig,
    TrainingSection,
    load_study,
    space_of,
)
from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import plan_for
from fednas.space import SearchSpace

LARGEST_CLAIM = 3.0
"""An audit claims no more by default: the one-run bound cannot exceed about ln(m / 3) for m canaries."""
CANARIES = 1000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A study whose mechanisms are attacked, on made-up records only.

    Args:
        study: what a server would send; it protects something, so its epsilon is finite.
        num_tiers: of its devices.
        run: a run directory whose own ledgers and rounds L0 reads; None for a study that never ran.
        claim: epsilon that canaries are played at, 0 < claim <= 10.
        canaries: how many, at least 100.
        seed: of the made-up records and of the coins of canaries: public, and no part of any mechanism.

    Raises:
        ConfigurationError: the study protects nothing, or a number is out of its bounds.
    """

    study: StudyConfig
    num_tiers: int = 3
    run: Path | None = None
    claim: float = LARGEST_CLAIM
    canaries: int = CANARIES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.study.privacy.non_private:
            raise ConfigurationError(
                "the study has no noise and epsilon = infinity: there is no claim to audit"
            )
        if not 0.0 < self.claim <= 10.0:
            raise ConfigurationError(f"expected 0 < --claim <= 10, got {self.claim:g}; audit at small claims")
        if not 100 <= self.canaries <= 100_000:
            raise ConfigurationError(f"expected 100 <= --canaries <= 100000, got {self.canaries}")

    @classmethod
    def of(cls, target: Path, *, claim: float | None = None, canaries: int = CANARIES, seed: int = 0) -> Self:
        """The subject of a run directory, or of a `study.toml`.

        Args:
            target: the folder of a run, or a file.
            claim: by default the study's epsilon, and at most `LARGEST_CLAIM`.
            canaries: how many.
            seed: of made-up records.

        Raises:
            ConfigurationError, RunDirectoryError: one line each.
        """
        run = target if target.is_dir() else None
        if run is not None and not (run / "study.toml").is_file():
            raise RunDirectoryError(f"{target} holds no study.toml; give a run directory or a study.toml")
        study = load_study(target / "study.toml" if run is not None else target)
        subject = cls.of_study(study, claim=claim, canaries=canaries, seed=seed)
        return subject if run is None else replace(subject, run=run, num_tiers=_num_tiers(run))

    @classmethod
    def of_study(
        cls, study: StudyConfig, *, claim: float | None = None, canaries: int = CANARIES, seed: int = 0
    ) -> Self:
        """The subject of a study that need not have run; see `of`.

        Raises:
            ConfigurationError: the study protects nothing, or a number is out of its bounds.
        """
        least = min(LARGEST_CLAIM, study.privacy.epsilon)
        return cls(study=study, claim=least if claim is None else claim, canaries=canaries, seed=seed)

    @property
    def space(self) -> SearchSpace:
        """The study's search space."""
        return space_of(self.study)

    @property
    def budget(self) -> PrivacyBudget:
        """The study's epsilon and delta."""
        return self.study.privacy.budget

    def plan(self) -> PrivacyPlan:
        """What the study asks a site to agree to, at the study's own epsilon."""
        return plan_for(self.study, self.num_tiers, self.budget)


def reference(**changes: object) -> Subject:
    """A small study that uses every mechanism: what mutants are tried on.

    Args:
        changes: other values for the fields of `Subject`.
    """
    study = StudyConfig(
        name="reference",
        data=DataSchema(input_shape=(6,), class_names=("a", "b", "c")),
        search=SearchSection(space="mlp", strategy="differentiable", pool=3),
        privacy=PrivacySection(epsilon=3.0, delta=1e-5, weights=0.8, architecture=0.1, fitness=0.1),
        schedule=ScheduleSection(search_rounds=3, final_rounds=2, generations=1, candidates=3),
        training=TrainingSection(steps_per_round=2, sampling_probability=0.25, micro_batch=16),
    )
    values: dict[str, object] = {"study": study, "claim": 2.0, "canaries": 400}
    return Subject(**(values | changes))  # type: ignore[arg-type]


def _num_tiers(run: Path) -> int:
    """As the run's sites agreed; a run that has not begun has not agreed yet."""
    path = run / "plan.json"
    if not path.is_file():
        return 3
    try:
        number = json.loads(path.read_text(encoding="utf-8"))["num_tiers"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirectoryError(f"{path} is corrupt; audit the run's study.toml instead") from error
    if type(number) is not int or number < 1:
        raise RunDirectoryError(f"{path} is corrupt; audit the run's study.toml instead")
    return number
