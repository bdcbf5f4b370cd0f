"""Drills hold for the correct system, see mistakes planted by hand, and rest on formulas that are right."""

import json
import math
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednas.audit import accounts, conversations, drills, recount
from fednas.audit.conformance import check_conformance
from fednas.audit.estimators import gaussian
from fednas.audit.findings import Check
from fednas.audit.ledger_files import (
    altering,
    connect,
    durability,
    edit,
    read_entries,
    spoil_reply,
    write_lock_is_held,
)
from fednas.audit.mutation import MUTANTS, load_mutants
from fednas.audit.subject import Subject, reference
from fednas.config import StudyConfig, validated
from fednas.errors import LedgerError
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import NonPrivate, PoissonGaussian
from fednas.privacy.ledger import PrivacyLedger
from fednas.privacy.numbers import canonical_json
from fednas.privacy.renyi_filter import RenyiFilter
from fednas.privacy.spend import Spend
from fednas.privacy.store import SCHEMA, LedgerStore
from fednas.privacy.streams import StreamedRecords
from fednas.privacy.verify import LedgerTampered, verify

Drill = Callable[[Path], Iterator[Check]]


def failed(drill: Drill, folder: Path) -> set[str]:
    return {check.name for check in drill(folder) if not check.holds}


def changed(**sections: dict[str, Any]) -> Subject:
    """The reference subject with other values in some sections of its study."""
    values = reference().study.model_dump()
    for section, settings in sections.items():
        values[section] |= settings
    return replace(reference(), study=validated(StudyConfig, values, "changed"))


# The correct system


def test_the_correct_system_is_not_accused(tmp_path: Path) -> None:
    checks = [check for check in check_conformance(reference(), tmp_path) if isinstance(check, Check)]
    assert [(check.name, check.detail) for check in checks if not check.holds] == []
    names = [check.name for check in checks]
    assert len(set(names)) == len(names) >= 55
    assert {check.layer for check in checks} == {"L0"}
    assert not any("\n" in name or name.endswith(".") for name in names)


@pytest.mark.parametrize(
    "sections",
    [
        {"search": {"strategy": "random"}, "privacy": {"weights": 0.9, "architecture": 0.0}},
        {"search": {"strategy": "tpe", "fixed": {"any": {"activation": "tanh", "depth": 1}}}},
        pytest.param(
            {"training": {"sampling_probability": 1.0, "steps_per_round": 1}}, marks=pytest.mark.slow
        ),
        pytest.param({"privacy": {"epsilon": 0.5, "delta": 1e-8}}, marks=pytest.mark.slow),
    ],
)
def test_sites_of_other_studies_are_not_accused(sections: dict[str, Any], tmp_path: Path) -> None:
    for scene in (conversations.sites_answer, conversations.sites_refuse):
        place = tmp_path / scene.__name__
        place.mkdir()
        assert failed(partial(scene, changed(**sections)), place) == set()


@pytest.mark.slow
def test_the_correct_system_is_not_accused_in_forty_audits(tmp_path: Path) -> None:
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        findings = check_conformance(reference(seed=seed), folder)
        assert [f for f in findings if isinstance(f, Check) and not f.holds] == []


def test_a_system_that_refuses_what_it_should_answer_is_told_so_in_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(LedgerStore, "append", full)
    first = next(iter(check_conformance(reference(), tmp_path)))
    assert first == Check(
        layer="L0",
        name="what a rehearsal may ask is answered",
        holds=False,
        detail="LedgerError: the disk is full",
    )


# Mistakes, planted by hand; the mutants of `fednas/audit/mutants/conformance.toml` are edits of the source


def nothing(*_: object, **__: object) -> None:
    return None


@pytest.mark.parametrize(
    ("drill", "owner", "name", "broken", "found"),
    [
        (
            drills.bounds_hold,
            Spend,
            "moved",
            nothing,
            "no plan moves records from one stream to another",
        ),
        (
            drills.runs_add_up,
            Spend,
            "claimed",
            lambda self, stream, *more: tuple(a.event for p in more for a in p.allowances),
            "a new run or process sees what earlier ones spent",
        ),
        (
            accounts.filters_hold,
            RenyiFilter,
            "refusal",
            nothing,
            "charges that adapt to releases stop at the filter's bound",
        ),
        (
            drills.bounds_hold,
            Spend,
            "standing",
            nothing,
            "a site whose owner lowered the cap below its claim refuses for ever",
        ),
        (
            drills.permits_are_narrow,
            StreamedRecords,
            "_check_indices",
            nothing,
            "a permit opens no record of another stream",
        ),
        (
            drills.commits_are_durable,
            drills,
            "durability",
            lambda ledger: (durability(ledger)[0], 1),
            "a power cut after a charge cannot undo it",
        ),
    ],
)
def test_a_mistake_in_a_ledger_is_found(
    drill: Drill,
    owner: object,
    name: str,
    broken: object,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert found in failed(drill, tmp_path)


@pytest.mark.parametrize(
    ("owner", "name", "broken", "found"),
    [
        (
            PrivacyLedger,
            "contains",
            lambda *_: True,
            "an older copy of a ledger is refused where the server's mark is shown",
        ),
        (
            Spend,
            "check_signature",
            nothing,
            "a ledger in which a charge was edited and its chain made anew is refused, by its site and by a "
            "stranger",
        ),
    ],
)
def test_a_mistake_at_a_site_is_found(
    owner: object, name: str, broken: object, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    accused = failed(partial(conversations.sites_refuse, reference()), tmp_path)
    assert found in accused


def test_a_plan_of_too_little_noise_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = reference()
    plan = subject.plan()
    steps = plan.allowance("search").amount
    event = PoissonGaussian(sampling_probability=0.25, noise_multiplier=1.2, steps=steps)
    search = replace(plan.allowance("search"), event=event)
    weak = replace(plan, allowances=(search, *plan.allowances[1:]))
    monkeypatch.setattr(Subject, "plan", lambda _: weak)
    found = failed(partial(accounts.the_plan_costs_what_it_says, subject), tmp_path)
    assert found == {"four accountants agree on what the study's plan costs the weights stream"}


def test_the_mutants_of_this_layer_are_edits_of_the_code_as_it_is() -> None:
    names = [entry["name"] for entry in tomllib.loads((MUTANTS / "conformance.toml").read_text())["mutant"]]
    mutants = [mutant for mutant in load_mutants() if mutant.name in names]
    assert len(mutants) == len(names) >= 40
    root = Path(__file__).resolve().parents[2]
    for mutant in mutants:
        assert mutant.layer == "L0"
        assert mutant.group in ("accounting", "ledger")
        for changed_edit in mutant.edits:
            source = (root / (changed_edit.module.replace(".", "/") + ".py")).read_text()
            compile(changed_edit.apply(source), mutant.name, "exec")


# The formulas


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.8), (0.1, 1.0), (0.3, 0.6), (0.25, 1.5), (0.9, 2.0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.2, 1.0, 3.0])
def test_the_delta_of_a_sampled_release_is_the_integral_in_both_directions(
    q: float, sigma: float, epsilon: float
) -> None:
    x = np.linspace(-12 * sigma - 1, 12 * sigma + 2, 400_001)
    plain, up, down = (np.exp(-((x - m) ** 2) / (2 * sigma**2)) for m in (0.0, 1.0, -1.0))
    scale = (x[1] - x[0]) / (sigma * math.sqrt(2 * math.pi))

    def integral(p: np.ndarray, r: np.ndarray) -> float:
        return float(np.maximum(0.0, p - math.exp(epsilon) * r).sum() * scale)

    mixture, mirrored = ((1 - q) * plain + q * other for other in (up, down))
    removed, added = recount.sampled_delta(q, sigma, epsilon)
    assert removed == pytest.approx(integral(mixture, plain), abs=1e-9)
    assert added == pytest.approx(integral(plain, mixture), abs=1e-9)
    replaced = integral(mixture, mirrored)
    if replaced > 1e-7 and epsilon > 0.0:
        assert recount.replaced_epsilon(q, sigma, replaced) == pytest.approx(epsilon, abs=1e-5)


@pytest.mark.parametrize(
    ("sigma", "delta", "epsilon"), [(4 / math.sqrt(50), 1e-5, 8.5957), (1.0, 1e-5, 4.3772), (1e6, 1e-5, 0.0)]
)
def test_the_epsilon_of_a_gaussian_is_the_published_one(sigma: float, delta: float, epsilon: float) -> None:
    assert gaussian.epsilon_of(1.0 / sigma, delta) == pytest.approx(epsilon, abs=1e-3)


SPENT = {(0.1, 1.5): 200}


@pytest.mark.parametrize(
    ("share", "rules"),
    [
        (1.0, set()),
        (0.98, {"not what Opacus' PRV accountant says"}),
        (1.02, {"not what Opacus' PRV accountant says"}),
        (1.2, {"not what Opacus' PRV accountant says", "more than the proved bound"}),
        (0.1, {"not what Opacus' PRV accountant says", "less than a part of it costs, exactly"}),
    ],
)
def test_an_epsilon_that_is_not_what_was_spent_is_found(share: float, rules: set[str]) -> None:
    event = PoissonGaussian(sampling_probability=0.1, noise_multiplier=1.5, steps=200)
    claim = share * epsilon_pld([event], 1e-5)
    wrong, figures = recount.disagreements(claim, SPENT, 1e-5)
    assert set(wrong) == rules
    assert "PRV 5.05" in figures


@pytest.mark.parametrize(
    ("claim", "spent", "holds"),
    [
        (0.0, {}, True),
        (0.1, {}, False),
        (0.0, {(0.1, 1.0): 0}, True),
        (math.inf, {(1.0, 0.0): 1, (0.1, 1.0): 2}, True),
        (3.0, {(1.0, 0.0): 1, (0.1, 1.0): 2}, False),
        (gaussian.epsilon_of(0.5, 1e-5), {(1.0, 4.0): 4}, True),
        (1.01 * gaussian.epsilon_of(0.5, 1e-5), {(1.0, 4.0): 4}, False),
        (0.999 * gaussian.epsilon_of(0.5, 1e-5), {(1.0, 4.0): 4}, False),
        (recount.sampled_epsilon(0.9, 2.0, 1e-5), {(0.9, 2.0): 1}, True),
        (math.nan, {(0.1, 1.0): 2}, False),
    ],
)
def test_simple_spends_are_known_exactly(
    claim: float, spent: dict[recount.Mechanism, int], holds: bool
) -> None:
    assert (recount.disagreements(claim, spent, 1e-5)[0] == []) == holds


def test_entries_are_added_up_by_stream_and_the_final_counts_everywhere() -> None:
    plan = drills.plan_of(
        search=PoissonGaussian(sampling_probability=0.2, noise_multiplier=3.0, steps=4),
        final=PoissonGaussian(sampling_probability=0.2, noise_multiplier=3.0, steps=2),
    )
    bare = drills.plan_of(PrivacyBudget.non_private(), fitness=NonPrivate(reason="audit", releases=2))
    documents = [
        {"run": name, "plan": json.loads(p.to_json())} for name, p in (("a", plan), ("b", plan), ("c", bare))
    ]
    result = recount.recount(
        [
            *(("PLAN", document) for document in documents),
            ("RESERVE", {"run": "a", "charges": {"search": 2}}),
            ("RESERVE", {"run": "b", "charges": {"search": 1, "final": 1}}),
            ("RELEASE", {}),
        ]
    )
    assert result.claimed["weights"] == {(0.2, 3.0): 12}
    assert result.claimed["architecture"] == {(0.2, 3.0): 4}
    assert result.claimed["fitness"] == {(0.2, 3.0): 4, (1.0, 0.0): 2}
    assert result.charged["weights"] == {(0.2, 3.0): 4}
    assert result.charged["fitness"] == {(0.2, 3.0): 1}


# Files of ledgers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed ledger with two releases."""
    with drills.open_ledger(tmp_path / "ledger") as ledger:
        ledger.open_plan("run", drills.COUNTS)
        for number in range(2):
            drills.ask(ledger, number, drills.Probe())
    return tmp_path / "ledger"


def test_entries_are_read_while_a_ledger_is_open_and_after(path: Path) -> None:
    kinds = [kind for kind, _ in read_entries(path)]
    assert kinds.count("RELEASE") == 2
    with drills.open_ledger(path) as ledger:
        drills.ask(ledger, 2, drills.Probe())
        assert len(read_entries(path, "RELEASE")) == 3
    with pytest.raises(sqlite3.OperationalError), connect(path) as connection:
        connection.execute("DELETE FROM entries")


def test_a_write_lock_is_seen_while_it_is_held_only(path: Path) -> None:
    assert not write_lock_is_held(path)
    with LedgerStore(path) as store:
        with store.transaction():
            assert write_lock_is_held(path)
        assert not write_lock_is_held(path)


def test_durability_is_asked_of_the_connection_that_a_ledger_works_with(path: Path) -> None:
    with drills.open_ledger(path) as ledger:
        assert durability(ledger) == ("wal", 2)
        ledger._store._connection.execute("PRAGMA synchronous=NORMAL")
        assert durability(ledger) == ("wal", 1)
    with pytest.raises(LookupError, match="no SQLite connection"):
        durability(object())


@pytest.mark.parametrize("rechained", [False, True])
def test_an_edit_changes_one_entry_and_leaves_the_file_a_ledger(path: Path, rechained: bool) -> None:
    before = read_entries(path)
    edit(path, "RESERVE", lambda body: body | {"round": 7}, rechained=rechained)
    after = read_entries(path)
    different = [n for n, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert [after[n][1]["round"] for n in different] == [7]
    with sqlite3.connect(path) as connection:
        found = {row[0] for row in connection.execute("SELECT sql FROM sqlite_master") if row[0]}
    connection.close()
    assert found == set(SCHEMA)
    with pytest.raises(LedgerTampered, match="last signature" if rechained else "chain of digests"):
        verify(path)


def test_a_body_that_an_edit_writes_is_canonical(path: Path) -> None:
    edit(path, "RESERVE", lambda body: body, rechained=True)
    assert verify(path).reservations == 2
    assert all(canonical_json(body) for _, body in read_entries(path))


def test_a_reply_that_was_spoilt_is_found_by_the_verifier(path: Path) -> None:
    spoil_reply(path)
    with pytest.raises(LedgerTampered, match="stored replies"):
        verify(path)


def test_altering_a_file_that_fails_changes_nothing(path: Path) -> None:
    before = read_entries(path)

    def fail() -> None:
        with altering(path) as connection:
            connection.execute("DELETE FROM entries")
            raise RuntimeError("made up")

    with pytest.raises(RuntimeError):
        fail()
    assert read_entries(path) == before
    verify(path)
