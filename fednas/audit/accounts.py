"""Drills of accountants: exact formulas, other accountants, a filter, and noise that protects nothing."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from fednas.audit.drills import Probe, ask, check, finals, open_ledger, plan_of, refusal
from fednas.audit.estimators.gaussian import epsilon_of
from fednas.audit.findings import Check
from fednas.audit.ledger_files import read_entries
from fednas.audit.recount import disagreements, recount, replaced_epsilon, sampled_epsilon
from fednas.audit.subject import Subject
from fednas.errors import PrivacyError
from fednas.privacy import verify
from fednas.privacy.accounting import epsilon_pld, epsilon_rdp
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.events import Gaussian, NonPrivate, PoissonGaussian

_SINGLE: Final = ((0.01, 0.8), (0.1, 1.0), (0.3, 0.6), (0.25, 1.5))
_COARSE: Final = 1e-3  # grid of the privacy loss, in nats: still pessimistic, ten times as fast


def rounds_add_up(folder: Path) -> Iterator[Check]:
    """Many runs of one round, and one run of many."""
    spends = []
    for name, runs, releases in (("many", 20, 1), ("one", 1, 20)):
        with open_ledger(folder / name) as ledger:
            for number in range(runs):
                ledger.open_plan(f"run {number}", finals(25.0, releases))
                ask(ledger, number, Probe(), {"final": releases}, run=f"run {number}")
            spend = ledger.statement().stream("weights")
            spends.append((spend.claimed_epsilon, spend.charged_epsilon))
    yield check(
        "twenty runs of one round cost what one run of twenty rounds costs",
        np.allclose(spends[0], spends[1], rtol=0.0, atol=1e-12) and spends[0][0] > 0.0,
        f"epsilon {spends[0][0]:.6f} and {spends[1][0]:.6f}",
    )


def accountants_are_exact(folder: Path) -> Iterator[Check]:
    """The accountants where epsilon is known exactly, under both neighbouring relations."""
    for relation, formula in (("add_remove", sampled_epsilon), ("replace_one", replaced_epsilon)):
        wrong, words = [], []
        for q, sigma in _SINGLE:
            event = PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=1)
            for delta in (1e-5, 1e-7):
                exact = formula(q, sigma, delta)
                tight = epsilon_pld(
                    [event],
                    delta,
                    relation=relation,  # type: ignore[arg-type]
                    value_discretization_interval=_COARSE,
                )
                proved = epsilon_rdp([event], delta, relation=relation)  # type: ignore[arg-type]
                words.append(f"{tight:.4f} for {exact:.4f}")
                if not exact - 1e-9 <= tight <= min(exact * 1.001 + 1e-3, proved * (1 + 1e-12)):
                    wrong.append(f"q {q}, sigma {sigma}, delta {delta:g}: {tight:.4f}, exactly {exact:.4f}")
        what = "added or removed" if relation == "add_remove" else "replaced"
        yield check(
            f"one sampled release costs what it costs exactly when a record is {what}",
            not wrong,
            "; ".join(wrong or words),
        )
    wrong, last = [], 0.0
    for releases in (1, 7, 40):
        exact = epsilon_of(releases**0.5 / 4.0, 1e-5)
        tight = epsilon_pld([Gaussian(noise_multiplier=4.0, releases=releases)], 1e-5)
        sampled = PoissonGaussian(sampling_probability=0.2, noise_multiplier=1.5, steps=releases)
        spent = epsilon_pld([sampled], 1e-5, value_discretization_interval=_COARSE)
        if not exact - 1e-9 <= tight <= exact * 1.001 + 1e-3:
            wrong.append(f"{releases} releases: {tight:.4f}, exactly {exact:.4f}")
        if not spent > last:
            wrong.append(f"{releases} steps cost {spent:.4f}, fewer cost {last:.4f}")
        last = spent
    yield check(
        "Gaussians cost what they cost exactly, and more releases cost more", not wrong, "; ".join(wrong)
    )
    yield from _claims_at_its_delta(folder)


def the_plan_costs_what_it_says(subject: Subject, _: Path) -> Iterator[Check]:
    """The study's own plan by three other accountants."""
    plan = subject.plan()
    body = {"run": "plan", "plan": json.loads(plan.to_json())}
    for stream, spent_on in recount([("PLAN", body)]).claimed.items():
        claim = plan.epsilon(stream)
        wrong, figures = disagreements(claim, spent_on, plan.budget.delta)
        if not claim <= plan.budget.epsilon:
            wrong.append(f"above the budget of {plan.budget.epsilon:g}")
        yield check(
            f"four accountants agree on what the study's plan costs the {stream} stream",
            not wrong,
            "; ".join([*wrong, figures]),
        )


def _claims_at_its_delta(folder: Path) -> Iterator[Check]:
    """A ledger's own claim of one sampled release, at a delta that is not the usual one."""
    cap = PrivacyBudget(epsilon=3.0, delta=1e-8)
    event = PoissonGaussian(sampling_probability=0.2, noise_multiplier=3.0, steps=1)
    with open_ledger(folder / "ledger", cap) as ledger:
        ledger.open_plan("run", plan_of(cap, search=event))
        claim = ledger.statement().claimed_epsilon
    exact = sampled_epsilon(0.2, 3.0, cap.delta)
    yield check(
        "a ledger's claim is what its plan costs exactly at its own delta",
        exact - 1e-9 <= claim <= exact * 1.001 + 1e-3,
        f"{claim:.4f}, exactly {exact:.4f} at delta {cap.delta:g}",
    )


def filters_hold(folder: Path) -> Iterator[Check]:
    """Adaptive mode: noise that is chosen by what was released, under a Rényi filter at one order."""
    path, order = folder / "ledger", 32
    cap = PrivacyBudget(epsilon=3.0, delta=1e-5, order=order)
    bound = cap.epsilon - (math.log1p(-1 / order) - math.log(cap.delta * order) / (order - 1))
    sigma, total, probe = 8.0, 0.0, Probe()
    with open_ledger(path, cap) as ledger:
        for run in range(30):
            plan = plan_of(cap, fitness=Gaussian(noise_multiplier=sigma, releases=1))
            if refusal(ledger.open_plan, f"run {run}", plan) is None:
                with suppress(PrivacyError):
                    released = ask(ledger, run, probe, run=f"run {run}").value["correct"]
                    total += order / (2 * sigma**2)
                    sigma = 6.0 if released[0] > 0 else 8.0
    spent = len(read_entries(path, "RESERVE"))
    yield check(
        "charges that adapt to releases stop at the filter's bound",
        0.0 < total <= bound * (1 + 1e-9) and spent == probe.runs,
        f"divergence {total:.4f} of {bound:.4f} at order {order}, {probe.runs} releases of 30",
    )
    try:
        figures = verify.verify(path)
    except verify.LedgerTampered as error:
        yield check("a stranger's verifier confirms what a filter let through", False, str(error))
        return
    yield check(
        "a stranger's verifier confirms what a filter let through",
        figures.order == order and figures.reservations == spent,
        f"{figures.reservations} charges",
    )


def unprotected_is_said(folder: Path) -> Iterator[Check]:
    """Noise that can be reproduced, and no noise, cost infinity."""
    with open_ledger(folder / "seeded", test_seed=1) as ledger:
        ledger.open_plan("run", finals(20.0, 1))
        ask(ledger, 1, Probe(), {"final": 1})
        statement = ledger.statement()
    claims = [statement.claimed_epsilon, statement.stream("weights").charged_epsilon]
    proof = verify.verify(folder / "seeded")
    claims += [proof.streams["weights"]["claimed_rdp"]]
    yield check(
        "a ledger with reproducible noise claims epsilon = infinity",
        claims == [math.inf] * 3 and statement.non_private and proof.seeded,
        f"claimed {claims[0]:g}",
    )
    nothing = PrivacyBudget.non_private()
    with open_ledger(folder / "bare", nothing) as ledger:
        ledger.open_plan("run", plan_of(nothing, final=NonPrivate(reason="audit", releases=1)))
        ask(ledger, 1, Probe(), {"final": 1})
        claim = ledger.statement().claimed_epsilon
    proved = verify.verify(folder / "bare").streams["weights"]["claimed_rdp"]
    yield check(
        "a plan without noise claims epsilon = infinity", (claim, proved) == (math.inf,) * 2, f"{claim:g}"
    )
    with open_ledger(folder / "private") as ledger:
        plan = plan_of(nothing, final=NonPrivate(reason="audit", releases=1))
        refused = refusal(ledger.open_plan, "run", plan)
    yield check("a plan without noise is refused under a finite cap", refused is not None)


ACCOUNTS: Final[tuple[Callable[[Path], Iterator[Check]], ...]] = (
    unprotected_is_said,
    filters_hold,
    rounds_add_up,
    accountants_are_exact,
)
"""Cheap and decisive ones first."""
