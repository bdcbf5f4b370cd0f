"""Audits as files, of games against mechanisms whose epsilon is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fednas.audit.canaries import coins
from fednas.audit.estimators.gaussian import mu_of
from fednas.audit.findings import MECHANISMS, Check, Game
from fednas.audit.mutation import load_mutants
from fednas.audit.report import compose
from fednas.audit.subject import Subject, reference
from fednas.audit.verdict import checks as verdict_of
from fednas.privacy.declaration import code_digest
from tests.audit.games import DELTA, game_of

CANARIES = 200
CHECKS = (
    Check(layer="L0", name="a repeated request gets the stored bytes", holds=True),
    Check(layer="L1", name="the sum moves by at most the clip norm", holds=True, detail="0.999 <= 1"),
    Check(layer="L2", name="the noise is as wide as was charged", holds=True, detail="z = 0.3, n = 1000"),
)


def games(subject: Subject, *, leak: float = 1.0) -> tuple[Game, ...]:
    """A game for each mechanism, against Gaussian noise that is too small by a factor."""
    random, found = np.random.default_rng(1), []
    for mechanism in MECHANISMS:
        members = coins(mechanism, subject.seed, (CANARIES,))
        scores = random.normal(size=CANARIES) + leak * mu_of(subject.claim, DELTA) * members
        found.append(replace(game_of(members, scores, claim=subject.claim), mechanism=mechanism))
    return tuple(found)


def matrix(*, survivors: int = 0) -> dict[str, Any]:
    """What a run of all mutants gives."""
    rows = [
        {
            "name": mutant.name,
            "layer": mutant.layer,
            "group": mutant.group,
            "mechanisms": mutant.mechanisms,
            "killed": number >= survivors,
            "found_by": "something is true (z = 12)" if number >= survivors else "",
            "error": "",
            "seconds": 0.5,
        }
        for number, mutant in enumerate(load_mutants())
    ]
    return {"code": code_digest(), "rows": rows}


def audit_of(run: Path | None = None, *, leak: float = 1.0, **changes: Any) -> dict[str, Any]:
    """A whole audit of the reference study, or of a run directory."""
    subject = replace(reference(), claim=2.0, canaries=CANARIES, run=run)
    played = games(subject, leak=leak)
    checks = [*CHECKS, *(check for game in played for check in verdict_of(game))]
    return compose(subject, checks, played, **({"mutants": matrix()} | changes))
