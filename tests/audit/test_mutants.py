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
        "none": (),
        "per block": (),
        "before summing micro-batches (2C)": (),
        "norm of the mean": (),
        "alpha outside the clip": (),
        "half precision": (),
        "NaN unmasked": (),
    },
    "noise": {
        "none": (),
        "divided by B": (),
        "x0.9": (),
        "x0.99": (),
        "one tensor only": (),
        "same key each round": (),
        "forked key": (),
        "seedable generator": (),
        "alpha un-noised": (),
    },
    "data": {
        "streams keyed by position": (),
        "features standardised with private statistics": (),
        "imputation from private medians": (),
    },
    "sampling": {
        "shuffle": (),
        "q x4": (),
        "fixed batch": (),
        "one sample for two charged streams": (),
        "N-dependent q": (),
        "N-dependent divisor": (),
    },
    "accounting": {
        "reset per run": (),
        "charge after release": (),
        "refund on crash": (),
        "re-noise on retry": (),
        "NaN event": (),
        "wrong relation": (),
        "PLD as filter": (),
        "selection uncharged": (),
        "metrics uncharged": (),
    },
    "ledger": {
        "no fsync": (),
        "snapshot restored": (),
        "entry edited and chain recomputed": (),
        "two processes": (),
    },
}

# The cheapest ten that cover all layers and all groups.
IN_CI: tuple[str, ...] = ()

HARMLESS = tuple(
    Mutant(
        name=f"only words are changed, before {layer}",
        layer=layer,
        group="clip",
        mechanisms=MECHANISMS,
        why="a layer that accuses everything proves nothing",
        edits=(
            Edit(module="fednas.privacy.grid", before="noised_sum(\n", after="noised_sum(  # another word\n"),
            Edit(module="fednas.privacy.ledger", before='"""Charge first, release', after='"""Release'),
        ),
    )
    for layer in ("L0", "L1")
)


def hear(mutants: list[Mutant]) -> tuple[dict[str, Outcome], float]:
    """How some mutants ended, and how many seconds that took in all."""
    start = time.monotonic()
    outcomes = {outcome.name: outcome for outcome in run_mutants(mutants)}
    assert set(outcomes) == {mutant.name for mutant in mutants}
    return outcomes, time.monotonic() - start


def words(outcomes: Mapping[str, Outcome], names: set[str]) -> list[str]:
    """Those that were not found, as a person reads it."""
    return [
        f"{o.layer} {o.name}: {o.error or 'survived'}"
        for o in outcomes.values()
        if o.name in names and not o.killed
    ]


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
    chosen = [MUTANTS[name] for name in IN_CI]
    assert len(chosen) == 10
    assert {mutant.layer for mutant in chosen} == set(LAYERS)
    assert {mutant.group for mutant in chosen} == set(GROUPS)
    outcomes, seconds = hear([*chosen, *HARMLESS])
    assert words(outcomes, set(IN_CI)) == []
    for mutant in HARMLESS:
        assert not outcomes[mutant.name].killed
        assert outcomes[mutant.name].error == outcomes[mutant.name].found_by == "", "it survives: it is right"
    assert seconds < 60.0


@pytest.mark.slow
def test_every_mutant_is_found_by_its_layer_in_five_minutes() -> None:
    outcomes, seconds = hear(list(MUTANTS.values()))
    assert words(outcomes, set(MUTANTS)) == []
    assert seconds < 300.0


@pytest.mark.slow
def test_every_layer_checks_the_correct_code_and_accuses_nothing() -> None:
    outcomes = list(run_controls(LAYERS))
    assert {outcome.layer for outcome in outcomes} == set(LAYERS)
    assert [outcome.error for outcome in outcomes] == [""] * len(LAYERS)
