"""Layer L2 on the real site: what it reads of noise and of samples, and what it says of mistakes."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fednas.audit import null_statistics, null_tests
from fednas.audit.findings import Check
from fednas.audit.null_statistics import check_statistics
from fednas.audit.open_site import BITS, STEPS, OpenSite, SampleStudy
from fednas.audit.quiet_site import NoiseStudy, QuietSite, draw_in_children
from fednas.audit.subject import Subject, reference
from fednas.errors import ExchangeError, PrivacyError
from fednas.privacy.entropy import SecureEntropy

Noise = Callable[[SecureEntropy, float, int], np.ndarray]
Coins = Callable[[SecureEntropy, float, int], np.ndarray]

NOISE, COINS = SecureEntropy.noise, SecureEntropy.poisson


def subject_with(**training: object) -> Subject:
    study = reference().study
    changed = study.training.model_copy(update=training)
    return Subject.of_study(study.model_copy(update={"training": changed}))


def first_accusation(folder: Path) -> Check:
    for check in check_statistics(reference(), folder):
        assert isinstance(check, Check)
        if not check.holds:
            return check
    raise AssertionError("nothing was found")


def test_a_correct_system_is_accused_of_nothing_and_all_checks_have_names_and_figures(tmp_path: Path) -> None:
    checks = list(check_statistics(reference(), tmp_path))
    assert [str(check) for check in checks if not (isinstance(check, Check) and check.holds)] == []
    found = [check for check in checks if isinstance(check, Check)]
    assert {check.layer for check in found} == {"L2"}
    names = [check.name for check in found]
    assert len(set(names)) == len(names) >= 40
    for mechanism in ("search updates", "final updates", "architecture gradients", "counts of correct"):
        assert any(mechanism in name for name in names)
    assert sum("p = " in check.detail for check in found) >= 35


def drawn() -> list[float]:
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def test_global_generators_are_seeded_alike_for_a_while_and_then_go_on_as_before() -> None:
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    inside = []
    for _ in range(2):
        with null_statistics._global_seeds(3):
            inside.append(drawn())
    assert inside[0] == inside[1]
    assert drawn() == expected


def too_little(source: SecureEntropy, sigma: float, size: int) -> np.ndarray:
    return NOISE(source, sigma * 2.0 / 3.0, size)


def the_same(source: SecureEntropy, sigma: float, size: int) -> np.ndarray:
    return np.rint(np.random.default_rng(3).normal(scale=sigma, size=size)).astype(np.int64)


@pytest.mark.parametrize("planted", [too_little, the_same])
def test_noise_that_is_too_little_or_known_is_found(
    planted: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_statistics, "ROUNDS", 8)
    monkeypatch.setattr(SecureEntropy, "noise", planted)
    assert "noise" in first_accusation(tmp_path).name


def too_many(source: SecureEntropy, probability: float, size: int) -> np.ndarray:
    return COINS(source, min(1.0, 4.0 * probability), size)


def every_fourth(source: SecureEntropy, probability: float, size: int) -> np.ndarray:
    """A shuffle's batches: of one size, the first time around."""
    chosen = np.zeros(size, np.bool_)
    chosen[np.argsort(NOISE(source, 1e9, size))[: round(probability * size)]] = True
    return chosen


@pytest.mark.parametrize("planted", [too_many, every_fourth])
def test_samples_of_another_kind_are_found(
    planted: Coins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureEntropy, "poisson", planted)
    checks = null_statistics._check_samples(reference(), tmp_path)
    assert "sample" in next(check.name for check in checks if not check.holds)


def test_a_site_that_refuses_is_a_finding_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> np.ndarray:
        raise PrivacyError("no coins today")

    monkeypatch.setattr(SecureEntropy, "poisson", refuse)
    failed = [str(check) for check in check_statistics(reference(), tmp_path) if not check.holds]  # type: ignore[union-attr]
    assert len(failed) == 2
    assert all("answers every task" in text and "no coins today" in text for text in failed)


# What is read of quiet sites.


@pytest.mark.parametrize(
    "subject",
    [reference(), subject_with(clip_norm=3.0, architecture_clip_norm=1e-3, sampling_probability=1.0)],
    ids=["reference", "other clip norms"],
)
@pytest.mark.parametrize("with_records", [False, True])
def test_a_quiet_site_releases_noise_of_scale_one_whatever_is_asked(
    subject: Subject, with_records: bool, tmp_path: Path
) -> None:
    terms = NoiseStudy(subject=subject)
    records = terms.records if with_records else None
    with QuietSite(tmp_path, terms, declared_size=37, records=records) as site:
        draws = [site.train(1), site.train(2), site.train(3, kind="final"), site.train(4, steps=1)]
        if not with_records:
            draws.append(site.train(5, steps=3))
        assert all(noise.weights.shape == (len(terms.weights),) for noise in draws)
        assert [len(noise.alphas) for noise in draws[:4]] == [25, 25, 0, 25]
        assert max(noise.off_grid for noise in draws) < 1e-6
        for noise in draws:
            assert not null_tests.scale(noise.weights).accuses
            for factor in (2 / 3, 3 / 2):
                assert null_tests.scale(noise.weights * factor).accuses
        assert not null_tests.scale(np.concatenate([noise.alphas for noise in draws])).accuses
        counts = site.counts(6, 200)
        assert not null_tests.scale(counts).accuses
        assert null_tests.scale(counts * 3 / 2).accuses
    assert sorted(place.stop - place.start for place in terms.parameters.values())[0] == 8
    assert sum(place.stop - place.start for place in terms.parameters.values()) == len(terms.weights)


def test_forked_processes_draw_on_their_own_and_one_that_fails_is_told_of(tmp_path: Path) -> None:
    drawn = draw_in_children(tmp_path / "a", lambda place: {"x": np.full(3, float(place.name))}, number=2)
    assert [found["x"].tolist() for found in drawn] == [[0.0] * 3, [1.0] * 3]

    def fail(place: Path) -> dict[str, np.ndarray]:
        raise PrivacyError("refused")

    with pytest.raises(ExchangeError, match="did not answer"):
        draw_in_children(tmp_path / "b", fail, number=2)


# What is read of open sites.


@pytest.fixture
def coins(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The real coins of sites, as they fall."""
    fallen: list[np.ndarray] = []

    def remember(source: SecureEntropy, probability: float, size: int) -> np.ndarray:
        fallen.append(COINS(source, probability, size))
        return fallen[-1]

    monkeypatch.setattr(SecureEntropy, "poisson", remember)
    return fallen


@pytest.mark.parametrize(
    "subject",
    [
        reference(),
        subject_with(clip_norm=1e3, architecture_clip_norm=1e3, sampling_probability=0.9),
        subject_with(clip_norm=1e-5, architecture_clip_norm=1e-5, sampling_probability=0.01, micro_batch=3),
    ],
    ids=["reference", "large clip norms", "small clip norms"],
)
def test_an_update_tells_the_very_samples_of_every_step(
    subject: Subject, tmp_path: Path, coins: list[np.ndarray]
) -> None:
    terms = SampleStudy(subject=subject)
    records = {"weights": 200}
    with OpenSite(tmp_path, terms, rounds=3, declared_size=300, records=records, powers=True) as site:
        for number in range(3):
            coins.clear()
            samples = site.ask(number + 1)
            assert samples.exact
            assert np.array_equal(samples.architecture, coins[0])
            assert len(samples.architecture) == BITS
            assert np.array_equal(samples.weights, np.array(coins[1:]))
            assert len(samples.weights) == STEPS


def test_a_final_tells_the_samples_of_all_streams(tmp_path: Path, coins: list[np.ndarray]) -> None:
    records = {"weights": 40, "architecture": 30, "fitness": 20}
    terms = SampleStudy(subject=reference())
    with OpenSite(tmp_path, terms, rounds=1, declared_size=90, records=records) as site:
        samples = site.ask(1, kind="final")
    assert samples.exact
    assert np.array_equal(samples.weights, np.array(coins))
    assert samples.weights.shape == (STEPS, 90)


def test_an_update_that_is_no_sum_of_whole_gradients_is_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fednas.privacy.grid._UNITS", 0.99e6)  # a clip to 99 %
    with OpenSite(
        tmp_path,
        SampleStudy(subject=reference()),
        rounds=1,
        declared_size=90,
        records={"weights": 60},
        powers=True,
    ) as site:
        assert not site.ask(1).exact
