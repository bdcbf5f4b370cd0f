"""An audit tried again on what it recorded: every bound and verdict from the scores, no site asked."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

from fednas.audit.canaries import coins
from fednas.audit.estimators import accusers, lower_bounds
from fednas.audit.findings import LAYERS
from fednas.audit.mutation import Mutant, load_mutants
from fednas.audit.report import game_of
from fednas.audit.sent import Row
from fednas.audit.verdict import checks
from fednas.errors import ConfigurationError
from fednas.privacy.declaration import code_digest, packages

_SAME: Final = 1e-4  # of epsilon: another machine's special functions differ in their last digits, and a
# bisection on counts may take one step more


def audit_rows(
    file: str,
    audit: Mapping[str, Any],
    ledgers: Mapping[str, Sequence[str]],
    studies: Sequence[bytes],
) -> Iterator[Row]:
    """Verify what an audit proves by itself, and say what it does not.

    Args:
        file: its name.
        audit: a validated document.
        ledgers: by dataset, the digests of all entries of a ledger that verifies.
        studies: contents of the `study.toml` files at hand.
    """
    subject = f"{audit['name']} ({file})"

    def row(what: str, ok: bool | None, words: str) -> Row:
        return Row(what=what, subject=subject, ok=ok, words=words)

    yield row("audit's code", *_code(audit))
    if studies:
        same = audit["study"] in {sha256(content).hexdigest() for content in studies}
        yield row("audit's study", same, "study.toml is the audited one" if same else "study.toml is another")
    for dataset, seen in (audit["ledgers"] or {}).items():
        yield row("audit's ledger", *_head(dataset, seen, ledgers))
    for game in audit["games"]:
        yield row("audit's bounds", *_bounds(game))
        yield row("audit's coins", *_coins(game, audit["seed"]))
    yield row("audit's verdict", *_verdict(audit))
    if audit["accused"]:
        failing = [check["name"] for check in audit["checks"] if not check["holds"]]
        yield row("claim", False, f"the audit accuses the code: {failing[0] if failing else 'by its scores'}")
    if audit["mutants"] is not None:
        yield row("audit's mutants", *_mutants(audit["mutants"]))
    layers = "" if audit["layers"] == list(LAYERS) else "".join(f" --layer {at}" for at in audit["layers"])
    again = (
        f"fednas audit run study.toml --claim {audit['claim']:g} --canaries {audit['canaries']} "
        f"--seed {audit['seed']}{layers}" + ("" if audit["mutants"] is None else " --mutants")
    )
    words = f"that checks and scores are what the code gave: noise is new each time, so run it again: {again}"
    yield row("audit itself", None, words)


def _code(audit: Mapping[str, Any]) -> tuple[bool | None, str]:
    if audit["code"] != code_digest():
        return (
            None,
            f"it is of other code than is installed here ({code_digest()[:12]}): {audit['code'][:12]}",
        )
    others = [name for name, version in packages() if audit["packages"].get(name) != version]
    words = f"; other versions of {', '.join(others)}" if others else ""
    return True, f"the code that is installed here, every module{words}"


def _head(
    dataset: str, seen: Mapping[str, Any], ledgers: Mapping[str, Sequence[str]]
) -> tuple[bool | None, str]:
    digests = ledgers.get(dataset)
    if digests is None:
        return None, f"the ledger of {dataset} was not sent, or does not verify"
    if seen["entries"] > len(digests) or digests[seen["entries"] - 1] != seen["head"]:
        return False, f"the ledger of {dataset} is not the one that the audit read"
    return True, f"the ledger of {dataset} contains the {seen['entries']} entries that the audit read"


def _bounds(game: Mapping[str, Any]) -> tuple[bool, str]:
    found = {bound.estimator: bound for bound in lower_bounds(game_of(game))}
    stated = {bound["estimator"]: bound for bound in game["bounds"]}
    if list(stated) != list(found) or len(stated) != len(game["bounds"]):
        return False, f"{game['mechanism']}: estimators are {', '.join(found)}, stated {', '.join(stated)}"
    wrong = [
        f"{name} {stated[name]['epsilon']:.4f}, the scores give {bound.epsilon:.4f}"
        for name, bound in found.items()
        if not abs(bound.epsilon - stated[name]["epsilon"]) <= _SAME
        or (bound.confidence, bound.assumption) != (stated[name]["confidence"], stated[name]["assumption"])
    ]
    if wrong:
        return False, f"{game['mechanism']}: {'; '.join(wrong)}"
    epsilons = ", ".join(f"{name} {bound.epsilon:.2f}" for name, bound in found.items())
    return (
        True,
        f"{game['mechanism']}: {epsilons}, from {len(game['members'])} scores; claim {game['claim']:g}",
    )


def _coins(game: Mapping[str, Any], seed: int) -> tuple[bool, str]:
    """An auditor who chose the members after the scores would find what he likes."""
    drawn = coins(game["mechanism"], seed, (len(game["members"]),))
    same = "".join("1" if member else "0" for member in np.asarray(drawn)) == game["members"]
    words = f"{game['mechanism']}: who was a member is what the seed {seed} draws"
    return same, words if same else f"{game['mechanism']}: members are not what the seed {seed} draws"


def _verdict(audit: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the scores' accusations are among the checks, and all of them in the verdict."""
    stated = [(check["layer"], check["name"], check["holds"]) for check in audit["checks"]]
    refuted = False
    for entry in audit["games"]:
        game = game_of(entry)
        refuted |= bool(accusers(game))
        for check in checks(game):
            if (check.layer, check.name, check.holds) not in stated:
                truth = "holds" if check.holds else "does not hold"
                return False, f"by the scores it {truth} that {check.name}; the audit does not say so"
    expected = refuted or not all(holds for _, _, holds in stated)
    if audit["accused"] != expected:
        return False, f"it says {_word(audit['accused'])}, its findings say {_word(expected)}"
    failing = sum(not holds for _, _, holds in stated)
    found = f"{failing} of {len(stated)} checks do not hold" if failing else f"all {len(stated)} checks hold"
    return True, f"{_word(expected)}: {found}"


def _word(accused: bool) -> str:
    return "accused" if accused else "not accused"


def _mutants(mutants: Mapping[str, Any]) -> tuple[bool | None, str]:
    known = {mutant.name: mutant for mutant in load_mutants()}
    problems = [problem for row in mutants["rows"] if (problem := _mutant(row, known.get(row["name"])))]
    missing = [name for name in known if name not in {row["name"] for row in mutants["rows"]}]
    count = f"{mutants['killed']} of {mutants['of']} found"
    if mutants["code"] != code_digest():
        return None, f"{count}, of other code than is installed here; `fednas audit mutants` tries those here"
    if problems:
        return False, problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
    if missing:
        return False, f"{len(missing)} known mutants were left out, as {missing[0]!r}"
    return True, f"{count}; each is known here, and its text is in the installed code"


def _mutant(row: Mapping[str, Any], mutant: Mutant | None) -> str:
    """Why a row is not of a mutant that is known here; empty if it is."""
    name = repr(row["name"])
    if mutant is None:
        return f"there is no mutant {name:.100}"
    stated = (row["layer"], row["group"], tuple(row["mechanisms"]))
    if stated != (mutant.layer, mutant.group, mutant.mechanisms):
        return f"{name} is known as {mutant.layer}, {mutant.group}, {', '.join(mutant.mechanisms)}"
    sources: dict[str, str] = {}
    try:
        for edit in mutant.edits:
            source = sources.get(edit.module) or _source(edit.module)
            sources[edit.module] = edit.apply(source)
    except (ValueError, ConfigurationError) as error:
        return f"{name}: {error}"
    return ""


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"there is no module {module}")
    return Path(spec.origin).read_text(encoding="utf-8")
