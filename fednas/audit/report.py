"""An audit as a file: what was looked at, what was found, and all that anybody needs to count it again."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from fednas.audit.estimators import CONFIDENCE, accusers, lower_bounds
from fednas.audit.findings import LAYERS, Check, Game
from fednas.audit.run_files import read_ledgers, read_server
from fednas.audit.subject import Subject
from fednas.config import dump_study
from fednas.errors import ConfigurationError
from fednas.privacy.declaration import code_digest, packages
from fednas.privacy.numbers import decode_real, encode_real
from fednas.statement.audit import FORMAT, encode_audit, read_audit, validated

__all__ = ["compose", "game_of", "read", "write"]

_WORDS: Final = 1000
_FIGURES: Final = 4000


def compose(
    subject: Subject,
    checks: Sequence[Check],
    games: Sequence[Game],
    mutants: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """An audit as plain values, format 1.

    Args:
        subject: what was audited; if it is a run whose ledgers L0 read, their heads are written down.
        checks: in the order in which they were made, those of games among them.
        games: with all their coins and scores.
        mutants: `code`, and the `rows` of broken versions that were tried; None if none were.

    Raises:
        ConfigurationError: the findings are none that an audit could have.

    Guarantees:
        - It accuses if a check does not hold or if scores refute a claim, whatever was in `checks`.
        - Its figures are of made-up records only: a run's own ledgers give their heads and no more.
    """
    found = {check.layer for check in checks} | ({"L3"} if games else set())
    layers = [layer for layer in LAYERS if layer in found]
    document = {
        "format": FORMAT,
        "code": code_digest(),
        "packages": dict(packages()),
        "name": subject.study.name,
        "study": hashlib.sha256(dump_study(subject.study).encode()).hexdigest(),
        "claim": float(subject.claim),
        "canaries": subject.canaries,
        "seed": subject.seed,
        "layers": layers,
        "ledgers": _heads(subject, subject.run) if subject.run is not None and "L0" in layers else None,
        "checks": [
            {
                "layer": check.layer,
                "name": check.name[:_WORDS],
                "holds": bool(check.holds),
                "detail": check.detail[:_FIGURES],
            }
            for check in checks
        ],
        "games": [_encode_game(game) for game in games],
        "accused": not all(check.holds for check in checks) or any(accusers(game) for game in games),
        "mutants": None if mutants is None else _encode_mutants(mutants),
    }
    return validated(document)


def game_of(entry: Mapping[str, Any]) -> Game:
    """The game that an audit wrote down.

    Args:
        entry: of a validated audit's `games`.
    """
    scores = [decode_real(score) for score in entry["scores"]]
    return Game(
        mechanism=entry["mechanism"],
        claim=entry["claim"],
        delta=entry["delta"],
        members=np.frombuffer(entry["members"].encode(), dtype=np.uint8) == ord("1"),
        scores=np.array(scores, dtype=np.float64),
        runs=entry["runs"],
        adversary=entry["adversary"],
    )


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write an audit's file; equal audits give equal bytes.

    Raises:
        ConfigurationError: the document is no audit, or the file cannot be written.
    """
    content = encode_audit(validated(document))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}; give another file after --out"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Read an audit's file.

    Raises:
        ConfigurationError: in one line, what is wrong with it.
    """
    return read_audit(path)


def _heads(subject: Subject, run: Path) -> dict[str, dict[str, Any]]:
    """Entries and head of each of a run's ledgers that verifies; L0 accuses the others."""
    ledgers = read_ledgers(run, read_server(run, subject.study))
    return {
        ledger.proof.dataset: {"entries": ledger.proof.entries, "head": ledger.proof.head}
        for ledger in ledgers.found
    }


def _encode_game(game: Game) -> dict[str, Any]:
    return {
        "mechanism": game.mechanism,
        "claim": float(game.claim),
        "delta": float(game.delta),
        "runs": game.runs,
        "adversary": game.adversary,
        "members": "".join("1" if member else "0" for member in game.members),
        "scores": [encode_real(score) for score in game.scores],
        "bounds": [
            {
                "estimator": bound.estimator,
                "epsilon": float(bound.epsilon),
                "confidence": float(bound.confidence),
                "assumption": bound.assumption,
            }
            for bound in lower_bounds(game, CONFIDENCE)
        ],
    }


def _encode_mutants(mutants: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "name": row["name"],
            "layer": row["layer"],
            "group": row["group"],
            "mechanisms": list(row["mechanisms"]),
            "killed": row["killed"],
            "found_by": row["found_by"][:_FIGURES],
            "error": row.get("error", "")[:_FIGURES],
            "seconds": float(row["seconds"]),
        }
        for row in mutants["rows"]
    ]
    return {
        "code": mutants.get("code", code_digest()),
        "of": len(rows),
        "killed": sum(row["killed"] for row in rows),
        "rows": rows,
    }
