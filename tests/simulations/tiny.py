"""A federation that runs in a second or two: three small sites on three device tiers, records made up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fednas.config import (
    DataSchema,
    PrivacySection,
    ScheduleSection,
    SearchSection,
    StudyConfig,
    TrainingSection,
    load_site,
    load_sites,
    validated,
)
from fednas.devices import DeviceProfile
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import release_schedule
from server.checkpoint import create_run
from simulations.runner import Options
from simulations.scenario import Scenario, ScenarioData, SiteData, prepare

SIZES = {"alpha": 120, "bravo": 90, "cobra": 60}
TIERS = {"alpha": "large", "bravo": "middle", "cobra": "small"}
BYTES = {"large": (1 << 30, 1 << 30), "middle": (24_000, 500_000), "small": (4_000, 100_000)}
NUM_SITES = len(SIZES)


def device(tier: str) -> DeviceProfile:
    memory, training = BYTES[tier]
    return DeviceProfile(
        tier=tier,
        memory_bytes=memory,
        training_memory_bytes=training,
        upload_bytes=memory,
        max_latency_ms=10.0,
        macs_per_ms=1e6,
    )


def study(**changes: Mapping[str, Any]) -> StudyConfig:
    """Two search rounds, one generation, two final rounds; `changes` are values by section."""
    base = StudyConfig(
        name="tiny",
        data=DataSchema(input_shape=(4,), class_names=("low", "middle", "high")),
        search=SearchSection(space="mlp", pool=3),
        privacy=PrivacySection(epsilon=3.0, delta=1e-4, weights=0.8, architecture=0.1, fitness=0.1),
        schedule=ScheduleSection(search_rounds=2, final_rounds=2, generations=1, candidates=3),
        training=TrainingSection(steps_per_round=2, sampling_probability=0.2, micro_batch=16),
    )
    values = base.model_dump()
    for section, settings in changes.items():
        values[section] |= settings
    return validated(StudyConfig, values, "tiny")


def records(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (size, 4) whose first column tells the class, and the classes."""
    generator = np.random.default_rng([7, seed])
    y = np.arange(size, dtype=np.int64) % 3
    x = generator.normal(size=(size, 4)).astype(np.float32)
    x[:, 0] += 2 * y
    return x, y


def data() -> ScenarioData:
    sites = []
    for number, (name, size) in enumerate(SIZES.items()):
        x, y = records(size, number)
        sites.append(
            SiteData(
                name=name,
                x=x,
                y=y,
                identifiers=[f"{name}-{row}".encode() for row in range(size)],
                declared_size=size,
                device=device(TIERS[name]),
            )
        )
    test_x, test_y = records(60, 99)
    return ScenarioData(name="tiny", sites=tuple(sites), test_x=test_x, test_y=test_y)


def scenario() -> Scenario:
    return Scenario(
        name="tiny",
        description="Made up.",
        study=study(),
        load=data,
        baseline={"activation": "tanh", "depth": 1, "layers.0.width": 16},
    )


def make_run(
    path: Path,
    config: StudyConfig,
    *,
    seed: int | None = 0,
    cap: float | None = None,
    caps: Mapping[str, float] | None = None,
    run: str = "test-tiny",
    state: Path | None = None,
) -> Path:
    """A run directory with its sites; test noise unless `seed` is None."""
    create_run(path, config, run=run, about={"scenario": "tiny", "num_sites": NUM_SITES, "refused": []})
    budget = config.privacy.budget
    if cap is not None:
        budget = PrivacyBudget(epsilon=cap, delta=config.privacy.delta)
    own = {name: PrivacyBudget(epsilon=e, delta=config.privacy.delta) for name, e in (caps or {}).items()}
    prepare(data(), path, state=state, cap=budget, caps=own, test_seed=seed)
    test = data()
    np.savez(path / "public_test.npz", x=test.test_x, y=test.test_y)
    return path


def exhaust(path: Path, config: StudyConfig) -> None:
    """Let an earlier run spend what every site of a run allows."""
    for site in load_sites(path):
        plan = PrivacyPlan.calibrate(
            budget=site.cap,
            proportions=config.privacy.proportions,
            schedule=release_schedule(config, len(BYTES)),
        )
        with PrivacyLedger.open(
            site.ledger,
            dataset=site.dataset,
            cap=site.cap,
            test_seed=site.test_seed,
            declaration=site.declaration,
        ) as ledger:
            ledger.open_plan("earlier", plan)


def ledger_files(path: Path) -> dict[str, Path]:
    """The ledger of each site of a run, by the site's name."""
    configs = [load_site(file) for file in sorted(path.glob("sites/*/site.toml"))]
    return {config.name: config.ledger for config in configs}


TEST_NOISE = Options(test_noise=True)
