"""Every known way to break the code is found by the layer that must find it: ten in CI, all in the proofs."""

import ast
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from fednas.audit.findings import LAYERS, MECHANISMS
from fednas.audit.mutation import GROUPS, Edit, Mutant, load_mutants
from fednas.audit.nursery import Outcome, run_controls, run_mutants

MUTANTS: Mapping[str, Mutant] = {mutant.name: mutant for mutant in load_mutants()}
LEAST = 30

# What an audit must notice, and the mutants that make that mistake.
MISTAKES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "clip": {
        "none": ("records are not clipped",),
        "per block": (
            "each parameter is clipped by itself",
            "each choice of an architecture is clipped by itself",
        ),
        "before summing micro-batches (2C)": (
            "micro-batches are summed before they are clipped",
            "two views of a record are clipped one by one",
        ),
        "norm of the mean": ("records are scaled by the norm of their mean",),
        "alpha outside the clip": ("architecture gradients are outside the clip",),
        "half precision": ("norms are rounded to half precision",),
        "NaN unmasked": ("gradients that are not finite are summed",),
    },
    "noise": {
        "none": (
            "sums are released without noise",
            "the final trains without noise",
            "counts of correct predictions get no noise",
        ),
        "divided by B": ("noise is divided by the expected batch",),
        "x0.9": ("noise has nine tenths of its scale",),
        "x0.99": ("noise has 99 hundredths of its scale",),
        "one tensor only": ("noise is drawn for one tensor only",),
        "same key each round": ("every release draws from one key",),
        "forked key": ("one generator serves a process and survives its forks",),
        "seedable generator": (
            "noise comes from numpy's global generator",
            "noise comes from torch's global generator",
        ),
        "alpha un-noised": ("architecture gradients get no noise",),
    },
    "data": {
        "streams keyed by position": ("streams are keyed by position",),
        "features standardised with private statistics": (
            "features are standardised by the site's own mean and deviation",
        ),
        "imputation from private medians": ("missing values are the site's own medians",),
    },
    "sampling": {
        "shuffle": ("batches are shuffled, not sampled",),
        "q x4": ("records are sampled four times as often as charged",),
        "fixed batch": ("a step has as many records as expected, always",),
        "one sample for two charged streams": ("weights and architecture share one draw of coins",),
        "N-dependent q": (
            "the chance of a record follows from how many there are",
            "the sampling probability follows from the number of records",
        ),
        "N-dependent divisor": (
            "a step is divided by the size of its sample",
            "an architecture gradient is divided by the size of its sample",
        ),
    },
    "accounting": {
        "reset per run": ("the spend is reset with every run",),
        "charge after release": ("the charge is written after the release",),
        "refund on crash": ("a charge counts only once its release is stored",),
        "re-noise on retry": ("a retry is computed anew and not charged",),
        "NaN event": (
            "NaN is a noise multiplier",
            "a plan's text may hold NaN",
        ),
        "wrong relation": (
            "only adding a record is accounted for",
            "a replaced record costs what a removed one does",
        ),
        "PLD as filter": ("PLD is the filter",),
        "selection uncharged": (
            "selection is not accounted for",
            "an evaluation is charged once for all candidates",
        ),
        "metrics uncharged": ("a metric rides in a reply and the schema knows it",),
    },
    "ledger": {
        "no fsync": (
            "commits do not wait for the disk",
            "commits wait for the disk at checkpoints only",
        ),
        "snapshot restored": (
            "the server's mark is not looked at",
            "a ledger knows every head",
        ),
        "entry edited and chain recomputed": (
            "the signature of a ledger is not checked",
            "the verifier forgets the signature",
        ),
        "two processes": (
            "a ledger does not lock before it reads",
            "a ledger reads what others wrote after it wrote itself",
        ),
    },
}

# The cheapest ten that cover all layers and all groups.
IN_CI: tuple[str, ...] = (
    "the noise fits a clip ten thousand times smaller than the one used",
    "a record is augmented four times, and each copy is clipped by itself",
    "noise has 99 hundredths of its scale",
    "noise is drawn for one tensor only",
    "records are not clipped",
    "streams are keyed by position",
    "a step is divided by the size of its sample",
    "the spend is reset with every run",
    "a retry is computed anew and not charged",
    "commits do not wait for the disk",
)


def hear(mutants: list[Mutant], *, controls: bool) -> tuple[dict[str, Outcome], float]:
    """How some mutants ended, and how many seconds that took in all."""
    start = time.monotonic()
    outcomes = {outcome.name: outcome for outcome in run_mutants(mutants, controls=controls)}
    assert set(outcomes) == {mutant.name for mutant in mutants}
    return outcomes, time.monotonic() - start


def words(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Those that were not found, as a person reads it."""
    return [f"{o.layer} {o.name}: {o.error or 'survived'}" for o in outcomes.values() if not o.killed]


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.name)
def test_a_mutant_edits_code_that_is_there_and_leaves_code_that_compiles(mutant: Mutant) -> None:
    sources: dict[str, str] = {}
    for edit in mutant.edits:
        assert edit.module.split(".")[0] == "fednas"
        assert not edit.module.startswith("fednas.audit"), "a mutant breaks what is audited, not the audit"
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None
        assert spec.origin is not None
        source = sources.get(edit.module, Path(spec.origin).read_text(encoding="utf-8"))
        assert edit.before != edit.after
        sources[edit.module] = edit.apply(source)
    for module, source in sources.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None
        original = Path(str(spec.origin)).read_text(encoding="utf-8")
        changed = compile(source, module, "exec", dont_inherit=True)
        assert changed is not None
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(original)), "only words are changed"


def test_the_mutants_cover_all_layers_groups_and_mechanisms() -> None:
    assert len(MUTANTS) >= LEAST
    assert {mutant.layer for mutant in MUTANTS.values()} == set(LAYERS)
    assert {mutant.group for mutant in MUTANTS.values()} == set(GROUPS) == set(MISTAKES)
    assert {word for mutant in MUTANTS.values() for word in mutant.mechanisms} == set(MECHANISMS)


@pytest.mark.parametrize(
    ("group", "mistake"), [(group, mistake) for group, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_every_mistake_that_must_be_noticed_is_made_by_a_mutant(group: str, mistake: str) -> None:
    made = MISTAKES[group][mistake]
    assert made
    for name in made:
        assert MUTANTS[name].group == group


def test_ten_mutants_of_all_layers_and_groups_are_found_in_a_minute() -> None:
    """Each layer's own tests see that it accuses nothing of the correct code, so that none is heard again."""
    chosen = [MUTANTS[name] for name in IN_CI]
    assert len(chosen) == 10
    assert {mutant.layer for mutant in chosen} == set(LAYERS)
    assert {mutant.group for mutant in chosen} == set(GROUPS)
    outcomes, seconds = hear(chosen, controls=False)
    assert words(outcomes) == []
    assert seconds < 60.0


@pytest.mark.slow
def test_every_mutant_is_found_by_its_layer_in_five_minutes() -> None:
    outcomes, seconds = hear(list(MUTANTS.values()), controls=True)
    assert words(outcomes) == []
    assert seconds < 300.0


@pytest.mark.slow
def test_every_layer_checks_the_correct_code_and_accuses_nothing() -> None:
    outcomes = list(run_controls(LAYERS))
    assert {outcome.layer for outcome in outcomes} == set(LAYERS)
    assert [outcome.error for outcome in outcomes] == [""] * len(LAYERS)


@pytest.mark.slow
def test_code_in_which_only_words_are_changed_survives() -> None:
    harmless = Mutant(
        name="only words are changed",
        layer="L0",
        group="clip",
        mechanisms=MECHANISMS,
        why="a layer that accuses everything proves nothing",
        edits=(
            Edit(module="fednas.privacy.grid", before="noised_sum(\n", after="noised_sum(  # another word\n"),
            Edit(module="fednas.privacy.ledger", before='"""Charge first, release', after='"""Release'),
        ),
    )
    (outcome,) = run_mutants([harmless])
    assert not outcome.killed
    assert outcome.found_by == outcome.error == ""
