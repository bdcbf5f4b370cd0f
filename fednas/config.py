"""What a study and a site declare: validated values that may be printed anywhere."""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError
from fednas.privacy.allowance import STREAMS
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.declaration import Declaration
from fednas.space import SearchSpace, create

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Words = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def _data_source(data: object) -> Path | str:
    if not isinstance(data, Path | str):
        raise ValueError("must be a path, or text like package.module:function")
    return data if isinstance(data, str) and _FUNCTION.fullmatch(data) else Path(data)


DataSource = Annotated[Path | str, PlainValidator(_data_source)]
"""A file or folder, or the text `package.module:function`: a file of such a name is written `./name`."""


def _check_epsilon(epsilon: float, non_private: bool) -> None:
    if math.isinf(epsilon) != non_private:
        raise ValueError(
            f"an infinite epsilon and non_private = true need each other, got {epsilon=}, {non_private=}"
        )


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
        _check_epsilon(self.epsilon, self.non_private)
        total = self.weights + self.architecture + self.fitness
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"the shares weights + architecture + fitness must add up to 1, got {total:.6g}")
        return self

    @property
    def budget(self) -> PrivacyBudget:
        """What no stream of a site may exceed."""
        if self.non_private:
            return PrivacyBudget.non_private(delta=self.delta)
        return PrivacyBudget(epsilon=self.epsilon, delta=self.delta)

    @property
    def proportions(self) -> dict[str, float]:
        """The share of a site's records in each stream."""
        return {stream: getattr(self, stream) for stream in STREAMS}


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
    """The space, the strategy, and the width of the data-free shortlist.

    `fixed` gives each tier its architecture beforehand: then nothing is searched, every round trains them.
    """

    space: Literal["mlp", "conv", "conv1d"]
    strategy: Literal["random", "evolution", "tpe", "differentiable"] = "evolution"
    pool: Count = 24
    fixed: dict[str, dict[str, bool | int | float | str]] | None = None


class FederationSection(_Section):
    """How long a round waits, how many sites it needs, and how many of them may be hostile.

    `mean` weights sites by their public inverse noise variance, and one hostile site moves it as far as a
    plausible update reaches. The others give every site one vote and bear `max_hostile` hostile ones; what
    they cost, and what noise leaves of them, stands in `fednas.aggregation` and in the README.
    """

    deadline_s: Positive = 600.0
    quorum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    min_sites: Count = 2
    aggregation: Literal["mean", "trimmed_mean", "median", "krum"] = "mean"
    max_hostile: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.aggregation == "mean" and self.max_hostile > 0:
            raise ValueError(
                f"the mean bears no hostile site, got max_hostile = {self.max_hostile}; set aggregation to "
                "trimmed_mean, median or krum, or remove max_hostile"
            )
        if self.aggregation != "mean" and self.max_hostile == 0:
            raise ValueError(
                f"{self.aggregation} needs the number of hostile sites that it must bear; set max_hostile to "
                "1 or more"
            )
        return self

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A study's text is part of the name of every operation: that of a mean stays what it always was.
        values: dict[str, Any] = handler(self)
        if self.aggregation == "mean":
            del values["aggregation"], values["max_hostile"]
        return values


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


TABLES: Final = (".csv", ".parquet")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ColumnsSection(_Section):
    """Which columns of a table are what, and public constants for its features.

    A feature becomes (value - offset) / scale. Both are numbers that the owner knows beforehand (a physical
    range, a published mean), never computed from the site's records: preprocessing is part of the mechanism,
    and with a mean of all records, one record would move every other. Set them once: they are part of the
    bytes by which a record without an identifier is known.

    Args:
        label: the column of classes.
        id: the column of identifiers; without one, records are known by their canonical bytes.
        features: columns in the order of the study's shape, row by row; by default all others, in the file's
            order.
        offset: one number, or one a feature.
        scale: one number, or one a feature; positive.
    """

    label: str = "label"
    id: str | None = None
    features: tuple[str, ...] | None = None
    offset: Finite | tuple[Finite, ...] = 0.0
    scale: Positive | tuple[Positive, ...] = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [self.label, *([] if self.id is None else [self.id]), *(self.features or ())]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"the column {twice[0]!r:.60} has two uses; give it one")
        return self


class SiteConfig(_Section):
    """One site, as its owner writes it down: `site.toml`.

    Every field is a public fact: `declared_size` is what the owner states, never a count of the records, and
    `epsilon` with `delta` is the cap of everything that may ever leave the dataset. With `order` the cap is a
    Rényi filter at that order: later plans may choose their noise by earlier releases; it never changes.
    With `server_key`, the text of a server's `server.pub`, the site does what that server signed and nothing
    else; without it, whatever reaches it through Flower.
    `controller` and `purpose` are repeated in the site's privacy statement.
    `data` is an `.npz`, `.csv` or `.parquet` file, a folder of images, or the text `package.module:function`;
    `columns` says what the columns of a `.csv` or `.parquet` are.
    Relative paths are relative to the folder of the file; `load_site` returns them resolved.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")
    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9_./-]{0,79}$")
    data: DataSource
    columns: ColumnsSection | None = None
    declared_size: Count
    epsilon: Annotated[float, Field(gt=0.0)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    non_private: bool = False
    order: Annotated[int, Field(ge=2, le=256)] | None = None
    ledger: Path
    controller: Words = ""
    purpose: Words = ""
    test_seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    server_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    device: DeviceProfile

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_epsilon(self.epsilon, self.non_private)
        self.cap.check_size(self.declared_size)
        table = isinstance(self.data, Path) and self.data.suffix.lower() in TABLES
        if self.columns is not None and not table:
            raise ValueError("columns describes a table; name a .csv or .parquet file in data, or remove it")
        return self

    @property
    def cap(self) -> PrivacyBudget:
        """The most that may ever leave this dataset."""
        if self.non_private:
            return PrivacyBudget.non_private(delta=self.delta)
        return PrivacyBudget(epsilon=self.epsilon, delta=self.delta, order=self.order)

    @property
    def declaration(self) -> Declaration:
        """What the owner declares beside the cap."""
        return Declaration(controller=self.controller, purpose=self.purpose, declared_size=self.declared_size)


_UNKNOWN = (
    "extra_forbidden",
    "unexpected_keyword_argument",
)  # pydantic's words, of models and of dataclasses
_Config = TypeVar("_Config", StudyConfig, SiteConfig)
_Model = TypeVar("_Model", bound=_Section)


def parse_study(text: str, *, source: str = "study") -> StudyConfig:
    """Validate the text of a `study.toml`, from a file or from a message.

    Args:
        text: TOML, as `dump_study` writes it.
        source: what an error calls it.

    Raises:
        ConfigurationError: in one line, the setting, its value and the bound.
    """
    return _parse(StudyConfig, text, source)


def dump_study(config: StudyConfig) -> str:
    """Return the TOML text from which `parse_study` makes an equal study; equal studies give equal texts."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def load_study(path: Path) -> StudyConfig:
    """Read and validate a `study.toml`.

    Raises:
        ConfigurationError: in one line, the setting, its value and the bound.
    """
    return parse_study(_read(path), source=path.name)


def save_study(config: StudyConfig, path: Path) -> None:
    """Write a study so that `load_study` returns an equal one."""
    path.write_text(dump_study(config), encoding="utf-8")


def load_site(path: Path) -> SiteConfig:
    """Read and validate a `site.toml`; its paths come back resolved against the folder of the file.

    Raises:
        ConfigurationError: in one line, the setting, its value and the bound.
    """
    config = _parse(SiteConfig, _read(path), path.name)
    folder = path.parent.resolve()
    data = config.data if isinstance(config.data, str) else folder / config.data
    return config.model_copy(update={"data": data, "ledger": folder / config.ledger})


def load_sites(run: Path) -> list[SiteConfig]:
    """The sites that a run directory holds, in the order of their numbers; a deployed run holds none.

    Raises:
        ConfigurationError: in one line, the setting, its value and the bound.
    """
    files = (run / "sites").glob("*/site.toml")
    return [load_site(file) for file in sorted(files, key=lambda f: (len(f.parent.name), f.parent.name))]


def save_site(config: SiteConfig, path: Path) -> None:
    """Write a site; paths inside the folder of the file are written relative to it."""
    folder = path.parent.resolve()
    document = config.model_dump(exclude_none=True)
    for name in ("data", "ledger"):
        if isinstance(document[name], str):  # a function has no folder
            continue
        target = folder / document[name]
        inside = target.is_relative_to(folder)
        text = (target.relative_to(folder) if inside else target).as_posix()
        document[name] = f"./{text}" if _FUNCTION.fullmatch(text) else text
    path.write_text(tomli_w.dumps(document), encoding="utf-8")


def validated(model: type[_Model], values: Mapping[str, Any], source: str) -> _Model:
    """Make a section of a study from plain values.

    Raises:
        ConfigurationError: in one line, the setting, its value and the bound.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {_explain(error)}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; give the path of a TOML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path.name} is not UTF-8 text; TOML must be") from error


def _parse(model: type[_Config], text: str, source: str) -> _Config:
    try:
        return model.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {_explain(error)}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _explain(error: ValidationError) -> str:
    """Say the first thing that is wrong in one line: the setting, its value, the bound."""
    problems = error.errors(include_url=False)
    # A misspelt name explains a missing one, so it comes first.
    problems.sort(key=lambda problem: problem["type"] not in _UNKNOWN)
    first = problems[0]
    setting = ".".join(str(part) for part in first["loc"])
    if first["type"] in _UNKNOWN:
        text = f"there is no setting {setting}; check its spelling and its section"
    elif first["type"] == "missing":
        text = f"{setting} is missing; add it"
    else:
        message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        scalar = isinstance(first["input"], str | int | float | bool)
        value = (
            f" = {str(first['input'])[:60]!r}" if isinstance(first["input"], str) else f" = {first['input']}"
        )
        text = f"{setting}{value if scalar else ''}: {message[:1].lower()}{message[1:]}"
        text = text.removeprefix(": ")
    others = len(problems) - 1
    return " ".join(text.split()) + (f" (and {others} more)" if others else "")


def space_of(study: StudyConfig) -> SearchSpace:
    """The search space of a study; PyTorch is imported only now.

    Raises:
        ConfigurationError: the space is unknown, or the schema does not suit it.
    """
    return create(study.search.space, study.data.input_shape, study.data.num_classes)
