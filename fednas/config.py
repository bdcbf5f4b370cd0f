"""What a study and a site declare: validated values that may be printed anywhere."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan, ReleaseSchedule

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSchema(_Section):
    """The public schema of a record: the shape of its features and the names of its classes."""

    input_shape: tuple[Count, ...]
    class_names: tuple[str, ...] = Field(min_length=2)

    @property
    def num_classes(self) -> int:
        """The number of classes, at least 2."""
        return len(self.class_names)


class PrivacySection(_Section):
    """The one dial, epsilon, and how a site's records are divided among streams."""

    epsilon: Annotated[float, Field(gt=0.0)] = 3.0
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    non_private: bool = False
    weights: Fraction = 0.9
    architecture: Fraction = 0.05
    fitness: Fraction = 0.05

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epsilon == float("inf")) != self.non_private:
            raise ValueError("an infinite epsilon needs non_private = true, and the other way round")
        if abs(self.weights + self.architecture + self.fitness - 1.0) > 1e-9:
            raise ValueError("the stream proportions weights + architecture + fitness must add up to 1")
        return self


class ScheduleSection(_Section):
    """How many rounds a study takes and what a site does in each."""

    search_rounds: Count = 20
    final_rounds: Count = 10
    generations: Count = 3
    candidates: Count = 8
    spare_rounds: Annotated[int, Field(ge=0)] = 1


class TrainingSection(_Section):
    """DP-SGD on a site: public constants of the plan, the same everywhere."""

    sampling_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    steps_per_round: Count = 10
    clip_norm: Positive = 1.0
    learning_rate: Positive = 0.5
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    architecture_clip_norm: Positive = 0.1
    architecture_learning_rate: Positive = 1.0
    micro_batch: Count = 64


class SearchSection(_Section):
    """The space, the strategy, and the width of the data-free shortlist."""

    space: Literal["mlp", "conv", "conv1d"]
    strategy: Literal["random", "evolution", "tpe", "differentiable"] = "evolution"
    pool: Count = 32


class FederationSection(_Section):
    """How long a round waits and how many sites it needs."""

    deadline_s: Positive = 600.0
    quorum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    min_sites: Count = 2


class StudyConfig(_Section):
    """One federated search, as an operator writes it down: `study.toml`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: DataSchema
    search: SearchSection
    privacy: PrivacySection = PrivacySection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()
    federation: FederationSection = FederationSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        learns = self.search.strategy == "differentiable"
        if learns and self.privacy.architecture == 0.0:
            raise ValueError("the differentiable strategy needs a share of records: privacy.architecture > 0")
        return self
