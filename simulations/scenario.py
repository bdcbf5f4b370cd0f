"""A simulated federation as one value: sites with their devices and records, a public test set, a study."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fednas.config import (
    DataSchema,
    PrivacySection,
    ScheduleSection,
    SearchSection,
    SiteConfig,
    StudyConfig,
    TrainingSection,
    save_site,
)
from fednas.devices import DeviceProfile
from fednas.errors import DatasetError
from fednas.privacy.budget import PrivacyBudget

MINIMUM_SITE = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteData:
    """The records of one simulated site, and what it declares about them.

    Args:
        name: public name of the site.
        x: features, float32, shape (records, *input_shape).
        y: classes, int64, shape (records,).
        identifiers: stable identifiers of the records, unique.
        declared_size: a public constant of the scenario, never counted from the records.
        device: the hardware that will run the network.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    identifiers: list[bytes]
    declared_size: int
    device: DeviceProfile

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.identifiers):
            raise DatasetError(f"site {self.name}: features, labels and identifiers differ in length")
        if self.x.dtype != np.float32 or self.y.dtype != np.int64:
            raise DatasetError(f"site {self.name}: expected float32 features and int64 labels")
        if self.declared_size < MINIMUM_SITE:
            raise DatasetError(
                f"site {self.name} declares {self.declared_size} records, fewer than {MINIMUM_SITE}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScenarioData:
    """All that a scenario loads.

    Args:
        name: name of the scenario; it prefixes the name of every dataset.
        sites: the sites that take part, in a fixed order.
        refused: (site, reason) of the others.
        test_x, test_y: the public test set: an oracle that only a simulation has.
    """

    name: str = "study"
    sites: tuple[SiteData, ...]
    refused: tuple[tuple[str, str], ...] = ()
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A named federation: what it is, the study it suggests, and how to load its records.

    Args:
        name: the name used on the command line.
        description: one paragraph; states the unit that privacy protects.
        study: the suggested study.
        load: reads the records; slow, and the only part that needs the extra packages.
        baseline: the choices that an expert would make without a search; they fit every tier.
    """

    name: str
    description: str
    study: StudyConfig
    load: Callable[[], ScenarioData]
    baseline: Mapping[str, bool | int | float | str]

    @property
    def schema(self) -> DataSchema:
        """The public schema of a record."""
        return self.study.data


def suggested_study(
    name: str,
    space: Literal["mlp", "conv", "conv1d"],
    data: DataSchema,
    *,
    clip_norm: float,
    learning_rate: float,
) -> StudyConfig:
    """The study that the shipped scenarios share: they differ in their data, their space and their step."""
    return StudyConfig(
        name=name,
        data=data,
        search=SearchSection(space=space),
        privacy=PrivacySection(epsilon=3.0, delta=1e-5, weights=0.8, architecture=0.0, fitness=0.2),
        schedule=ScheduleSection(search_rounds=30, final_rounds=30, generations=2, candidates=12),
        training=TrainingSection(
            sampling_probability=0.1,
            steps_per_round=5,
            clip_norm=clip_norm,
            learning_rate=learning_rate,
            momentum=0.9,
        ),
    )


def refusal(declared_size: int) -> str | None:
    """Say why a site of this declared size may not take part, or None when it may.

    Below the minimum the noise drowns the signal, and taking part says too much about the few records.
    """
    if declared_size >= MINIMUM_SITE:
        return None
    return f"declares fewer than {MINIMUM_SITE} records, the minimum of a site"


def prepare(
    data: ScenarioData,
    directory: Path,
    *,
    state: Path | None = None,
    cap: PrivacyBudget,
    caps: Mapping[str, PrivacyBudget] | None = None,
    test_seed: int | None = None,
    server_key: str | None = None,
) -> list[Path]:
    """Write every site as its own folder, as a real site would hold it.

    Args:
        data: a loaded scenario.
        directory: folder of the simulation; sites go to `directory/sites/site-<k>/{site.toml,data.npz}`.
        state: folder of the ledgers, which then survive the simulation; None keeps each in its site's folder.
        cap: the budget of every site.
        caps: by name, the budgets of sites with another one.
        test_seed: seed of test noise; makes every spend non-private.
        server_key: public key of the server that the sites obey; None obeys any.

    Returns:
        The paths of the `site.toml` files, in the order of the sites.

    Raises:
        ConfigurationError: a cap's delta is above 1 / declared size of its site.
    """
    budgets = {site.name: cap for site in data.sites} | dict(caps or {})
    assert len(budgets) == len(data.sites), "whoever names a site has checked the name"
    paths: list[Path] = []
    for number, site in enumerate(data.sites):
        folder = directory / "sites" / f"site-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        ledger = folder / "ledger.sqlite"
        if state is not None:
            ledger = state.resolve() / data.name / f"{site.name}.sqlite"
            ledger.parent.mkdir(parents=True, exist_ok=True)
        config = SiteConfig(
            name=site.name,
            dataset=f"{data.name}/{site.name}",
            data=Path("data.npz"),
            declared_size=site.declared_size,
            epsilon=budgets[site.name].epsilon,
            delta=budgets[site.name].delta,
            non_private=not budgets[site.name].is_private,
            ledger=ledger.resolve(),
            test_seed=test_seed,
            server_key=server_key,
            device=site.device,
        )
        np.savez(folder / "data.npz", x=site.x, y=site.y, id=np.array(site.identifiers, dtype=np.bytes_))
        save_site(config, folder / "site.toml")
        paths.append(folder / "site.toml")
    return paths
