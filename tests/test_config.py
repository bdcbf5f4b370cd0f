import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednas.config import (
    ColumnsSection,
    DataSchema,
    PrivacySection,
    SearchSection,
    SiteConfig,
    StudyConfig,
    dump_study,
    load_site,
    load_study,
    parse_study,
    save_site,
    save_study,
)
from fednas.devices import DeviceProfile
from fednas.errors import ConfigurationError
from fednas.privacy.budget import PrivacyBudget

STUDY = StudyConfig(
    name="thyroid",
    data=DataSchema(input_shape=(29,), class_names=("none", "some")),
    search=SearchSection(space="mlp"),
)
DEVICE = DeviceProfile(
    tier="ward",
    memory_bytes=64_000,
    training_memory_bytes=4_000_000,
    upload_bytes=48_000,
    max_latency_ms=1.0,
    macs_per_ms=1e5,
)


def site(**changes: Any) -> SiteConfig:
    fields: dict[str, Any] = {
        "name": "north",
        "dataset": "thyroid/north",
        "data": Path("data.npz"),
        "declared_size": 200,
        "epsilon": 3.0,
        "ledger": Path("ledger.db"),
        "device": DEVICE,
    }
    return SiteConfig(**(fields | changes))


def test_a_study_survives_its_file(tmp_path: Path) -> None:
    save_study(STUDY, tmp_path / "study.toml")
    assert load_study(tmp_path / "study.toml") == STUDY


@given(
    epsilon=st.floats(1e-6, 1e6),
    delta=st.floats(1e-12, 0.5),
    shares=st.sampled_from([(0.9, 0.05, 0.05), (1.0, 0.0, 0.0), (0.8, 0.1, 0.1)]),
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,39}", fullmatch=True),
    classes=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])), min_size=2, max_size=4
    ),
)
def test_any_study_survives_its_text(
    epsilon: float, delta: float, shares: tuple[float, float, float], name: str, classes: list[str]
) -> None:
    weights, architecture, fitness = shares
    study = StudyConfig(
        name=name,
        data=DataSchema(input_shape=(1, 8, 8), class_names=tuple(classes)),
        search=SearchSection(space="conv"),
        privacy=PrivacySection(
            epsilon=epsilon, delta=delta, weights=weights, architecture=architecture, fitness=fitness
        ),
    )
    assert parse_study(dump_study(study)) == study


def test_a_study_without_privacy_survives_its_text() -> None:
    study = STUDY.model_copy(update={"privacy": PrivacySection(epsilon=math.inf, non_private=True)})
    assert parse_study(dump_study(study)) == study


def test_the_text_of_a_study_with_a_mean_is_the_one_it_had_before_there_was_a_choice() -> None:
    """It is part of the name of every operation, and so of the noise of a test."""
    text = dump_study(STUDY)
    assert "aggregation" not in text
    assert "max_hostile" not in text
    assert parse_study(text).federation.aggregation == "mean"


@pytest.mark.parametrize("rule", ["trimmed_mean", "median", "krum"])
def test_a_study_with_a_robust_rule_survives_its_text(rule: str) -> None:
    chosen = f'min_sites = 7\naggregation = "{rule}"\nmax_hostile = 2'
    study = parse_study(dump_study(STUDY).replace("min_sites = 2", chosen))
    assert (study.federation.aggregation, study.federation.max_hostile) == (rule, 2)
    assert parse_study(dump_study(study)) == study


def refused(old: str, new: str) -> str:
    text = dump_study(STUDY)
    assert old in text
    with pytest.raises(ConfigurationError) as caught:
        parse_study(text.replace(old, new, 1), source="study.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", "seed = -1", "seed = -1: must be greater than or equal to 0"),
        ("epsilon = 3.0", "epsilon = -1.5", "privacy.epsilon = -1.5: must be greater than 0"),
        ("epsilon = 3.0", "epsilon = nan", "privacy.epsilon = nan: must be greater than 0"),
        ("delta = 1e-05", "delta = 1.0", "privacy.delta = 1.0: must be less than 1"),
        ("clip_norm = 1.0", "clip_norm = inf", "training.clip_norm = inf: must be a finite number"),
        (
            "min_sites = 2",
            'min_sites = 2\naggregation = "average"',
            "federation.aggregation = 'average': must be 'mean', 'trimmed_mean', 'median' or 'krum'",
        ),
        (
            "min_sites = 2",
            "min_sites = 2\nmax_hostile = 1",
            "federation: the mean bears no hostile site, got max_hostile = 1; set aggregation to",
        ),
        (
            "min_sites = 2",
            'min_sites = 2\naggregation = "krum"',
            "federation: krum needs the number of hostile sites that it must bear; set max_hostile to 1 or",
        ),
        ("min_sites = 2", "min_sites = 2\nmax_hostile = -1", "federation.max_hostile = -1: must be greater"),
        ('"mlp"', '"transformer"', "search.space = 'transformer': must be 'mlp', 'conv' or 'conv1d'"),
        ("quorum", "qorum", "there is no setting federation.qorum; check its spelling and its section"),
        ('name = "thyroid"', "", "name is missing; add it"),
        ('"thyroid"', '"Thyroid!"', "name = 'Thyroid!': string should match pattern"),
        (
            "weights = 0.9",
            "weights = 0.5",
            "privacy: the shares weights + architecture + fitness must add up to 1",
        ),
        ("epsilon = 3.0", "epsilon = inf", "got epsilon=inf, non_private=False"),
        ("non_private = false", "non_private = true", "got epsilon=3.0, non_private=True"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting_the_value_and_the_bound(
    old: str, new: str, message: str
) -> None:
    text = refused(old, new)
    assert text.startswith("study.toml: ")
    assert message in text


def test_several_mistakes_show_the_first_and_count_the_others() -> None:
    assert refused("seed = 0", "sede = 0\nother = 1").endswith("(and 1 more)")


def test_a_misspelt_name_is_shown_before_the_name_it_leaves_missing() -> None:
    assert "there is no setting nmae" in refused("name", "nmae")


def test_a_long_value_is_shortened() -> None:
    assert len(refused('"thyroid"', f'"{"A" * 5000}"')) < 250


def test_text_that_is_not_toml_says_where() -> None:
    assert "is not valid TOML" in refused("seed = 0", "seed 0")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read .*study\.toml: No such file"):
        load_study(tmp_path / "study.toml")


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"study\.toml is not UTF-8 text"):
        load_study(tmp_path / "study.toml")


def test_the_differentiable_strategy_needs_records_of_its_own() -> None:
    text = dump_study(STUDY).replace('"evolution"', '"differentiable"')
    text = text.replace("weights = 0.9", "weights = 0.95").replace(
        "architecture = 0.05", "architecture = 0.0"
    )
    with pytest.raises(ConfigurationError, match=r"privacy\.architecture > 0"):
        parse_study(text)


def test_a_site_survives_its_file_and_its_paths_become_absolute(tmp_path: Path) -> None:
    save_site(site(test_seed=5), tmp_path / "site.toml")
    read = load_site(tmp_path / "site.toml")
    assert read == site(
        test_seed=5, data=tmp_path.resolve() / "data.npz", ledger=tmp_path.resolve() / "ledger.db"
    )
    save_site(read, tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_text() == (tmp_path / "site.toml").read_text()


def test_a_ledger_elsewhere_keeps_its_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    save_site(site(ledger=tmp_path / "state" / "north.db"), tmp_path / "site" / "site.toml")
    assert load_site(tmp_path / "site" / "site.toml").ledger == tmp_path / "state" / "north.db"


def test_a_site_folder_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    save_site(site(), tmp_path / "old" / "site.toml")
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_site(tmp_path / "new" / "site.toml").data == (tmp_path / "new" / "data.npz").resolve()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": "hospital.records:of_thyroid"},
        {"data": Path("scans")},
        {"data": Path("hospital:scans")},
        {
            "data": Path("data.CSV"),
            "columns": ColumnsSection(label="ill", features=("a", "b"), scale=(1.0, 2.0)),
        },
        {"data": Path("data.parquet"), "columns": ColumnsSection(id="patient", offset=-3.5)},
    ],
    ids=["function", "folder", "a folder named like a function", "CSV", "Parquet"],
)
def test_data_of_every_kind_survive_their_file(changes: dict[str, Any], tmp_path: Path) -> None:
    save_site(site(**changes), tmp_path / "site.toml")
    data = changes["data"]
    whole = data if isinstance(data, str) else tmp_path.resolve() / data
    expected = site(**(changes | {"data": whole, "ledger": tmp_path.resolve() / "ledger.db"}))
    read = load_site(tmp_path / "site.toml")
    assert read == expected
    assert type(read.data) is type(expected.data)
    save_site(read, tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_text() == (tmp_path / "site.toml").read_text()


def test_the_cap_of_a_site_is_its_budget() -> None:
    assert site(delta=1e-6).cap == PrivacyBudget(epsilon=3.0, delta=1e-6)
    assert site(epsilon=math.inf, non_private=True).cap == PrivacyBudget.non_private()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("delta = 1e-05", "delta = 0.1", "delta 0.1 is above 1 / 200 records"),
        ("epsilon = 3.0", "epsilon = inf", "got epsilon=inf, non_private=False"),
        ("declared_size = 200", "declared_size = 0", "declared_size = 0: must be greater than or equal to 1"),
        ("memory_bytes = 64000", "memory_bytes = 0", "expected a whole memory_bytes >= 1, got 0"),
        ("upload_bytes = 48000", "uplaod_bytes = 48000", "there is no setting device.uplaod_bytes"),
        ("macs_per_ms = 100000.0\n", "", "device.macs_per_ms is missing; add it"),
        ('tier = "ward"', "tier = 5", "device.tier = 5: must be a valid string"),
        ('data = "data.npz"', "data = 5", "data = 5: must be a path, or text like package.module:function"),
        (
            "[device]",
            "[columns]\n[device]",
            "columns describes a table; name a .csv or .parquet file in data",
        ),
        ("[device]", '[columns]\nid = "label"\n[device]', "the column 'label' has two uses; give it one"),
        ("[device]", "[columns]\nscale = 0\n[device]", "columns.scale"),
        ("[device]", "[columns]\noffset = [1.0, nan]\n[device]", "columns.offset"),
    ],
)
def test_a_mistake_in_a_site_is_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    save_site(site(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        load_site(path)
    assert str(caught.value).startswith("site.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "North", "a/b", "../up", "x" * 41])
def test_a_site_name_is_fit_for_a_file_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        site(name=name)
