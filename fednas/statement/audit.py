"""What an audit wrote down, as a statement reads it: validated, and held against the ledger."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednas.errors import ConfigurationError
from fednas.privacy.numbers import canonical_json, decode_real
from fednas.statement.account import Account
from fednas.statement.tradeoff import risk

FORMAT: Final = 1
LAYER_WORDS: Final = {
    "L0": "conformance: what the ledger says is what was released, and it holds under pressure",
    "L1": "record-play: one record more, with the noise taken away",
    "L2": "exact-null statistics: the noise and the coins are what was promised",
    "L3": "canaries: what an attacker extracts end to end",
}
RISK_WORDS = (
    "What any membership test could reach at most if epsilon were no more than the number in its row. The "
    "audit showed that epsilon is not below the attacker's; the promise is that it is not above the claim."
)
_LARGEST_FILE: Final = 32 << 20  # bytes; three games of 100 000 canaries take a third of it
_MOST_CANARIES: Final = 200_000

Layer = Literal["L0", "L1", "L2", "L3"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, Field(min_length=1, max_length=1000)]
Figures = Annotated[str, Field(max_length=4000)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Ledger(_Part):
    entries: Annotated[int, Field(ge=1, le=10**12)]
    head: Digest


class _Check(_Part):
    layer: Layer
    name: Words
    holds: bool
    detail: Figures


class _Bound(_Part):
    estimator: Annotated[str, Field(min_length=1, max_length=40)]
    epsilon: Annotated[float, Field(ge=0.0, le=1e6)]
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]
    assumption: Words


class _Game(_Part):
    mechanism: Literal["weights", "architecture", "fitness"]
    claim: Annotated[float, Field(gt=0.0, le=1e6)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    runs: Annotated[int, Field(ge=1, le=_MOST_CANARIES)]
    adversary: Words
    members: Annotated[str, Field(pattern=r"^[01]+$", max_length=_MOST_CANARIES)]
    scores: Annotated[list[str], Field(max_length=_MOST_CANARIES)]
    bounds: Annotated[list[_Bound], Field(min_length=1, max_length=20)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.members) != len(self.scores):
            raise ValueError("must have one score for each canary")
        if any(decode_real(score) is None for score in self.scores):
            raise ValueError("must have scores that are numbers, each spelt as Python does")
        return self


class _Mutant(_Part):
    name: Words
    layer: Layer
    group: Literal["clip", "noise", "data", "sampling", "accounting", "ledger"]
    mechanisms: Annotated[list[Literal["weights", "architecture", "fitness"]], Field(min_length=1)]
    killed: bool
    found_by: Figures
    error: Figures
    seconds: Annotated[float, Field(ge=0.0, le=1e9)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.killed and (self.error or not self.found_by):
            raise ValueError("must name the check that found it, and no error, if it was found")
        return self


class _Mutants(_Part):
    code: Digest
    of: Count
    killed: Count
    rows: Annotated[list[_Mutant], Field(max_length=10_000)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.of, self.killed) != (len(self.rows), sum(row.killed for row in self.rows)):
            raise ValueError("must count its own rows")
        if len({row.name for row in self.rows}) < len(self.rows):
            raise ValueError("must name each mutant once")
        return self


class _Audit(_Part):
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    code: Digest
    packages: dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=100)]]
    name: Words
    study: Digest
    claim: Annotated[float, Field(gt=0.0, le=1e6)]
    canaries: Annotated[int, Field(ge=1, le=_MOST_CANARIES)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    layers: list[Layer]
    ledgers: dict[Annotated[str, Field(max_length=80)], _Ledger] | None
    checks: Annotated[list[_Check], Field(max_length=100_000)]
    games: Annotated[list[_Game], Field(max_length=100)]
    accused: bool
    mutants: _Mutants | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.layers or self.layers != sorted(set(self.layers)):
            raise ValueError("must name its layers once, in order")
        if not {c.layer for c in self.checks} | {"L3" for _ in self.games} <= set(self.layers):
            raise ValueError("must have findings of its own layers only")
        if not self.accused and not all(check.holds for check in self.checks):
            raise ValueError("must accuse if a check does not hold")
        return self


def validated(document: object) -> dict[str, Any]:
    """An audit's document as it is, once it is known to be one.

    Args:
        document: plain values, as JSON gives them.

    Raises:
        ConfigurationError: in one line, what is wrong.
    """
    try:
        _Audit.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the audit"
        raise ConfigurationError(
            f"malformed audit: {place[:200]}: {first['msg'].removeprefix('Value error, ')}; audit again"
        ) from error
    assert isinstance(document, dict)
    return document


def encode_audit(document: Mapping[str, Any]) -> bytes:
    """The bytes of an audit's file: canonical JSON, ASCII, with a newline at its end."""
    return (canonical_json(document) + "\n").encode("ascii")


def decode_audit(content: bytes) -> dict[str, Any]:
    """Read an audit from its bytes.

    Raises:
        ConfigurationError: in one line, what is wrong. Bytes that the audit would not have written are
            refused too: what one reader sees in them another may not.
    """
    if len(content) > _LARGEST_FILE:
        raise ConfigurationError(
            f"an audit of {len(content)} bytes; expected at most {_LARGEST_FILE}: play fewer canaries"
        )
    try:
        document = json.loads(content)
        canonical = encode_audit(document)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError("malformed audit: it is no JSON with finite numbers; audit again") from error
    document = validated(document)
    if canonical != content:
        raise ConfigurationError("malformed audit: its JSON is not canonical: it was edited; audit again")
    return document


def read_audit(path: Path) -> dict[str, Any]:
    """Read an audit's file.

    Raises:
        ConfigurationError: in one line, what is wrong.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; give the audit.json of `fednas audit run`"
        ) from error
    try:
        return decode_audit(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def section(account: Account, document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a statement says of an audit; None without one.

    Args:
        account: of the ledger.
        document: a validated audit.
    """
    if document is None:
        return None
    return {
        "sha256": hashlib.sha256(encode_audit(document)).hexdigest(),
        "study": {"name": document["name"], "sha256": document["study"]},
        "accused": document["accused"],
        "claim": document["claim"],
        "seed": document["seed"],
        "code": _code(account, document),
        "ledger": _ledger(account, document),
        "layers": [_layer(layer, document["checks"]) for layer in document["layers"]],
        "failing": [check for check in document["checks"] if not check["holds"]],
        "games": [_game(game) for game in document["games"]],
        "risk": RISK_WORDS,
        "mutants": _mutants(document),
    }


def risk_of(epsilon: float, delta: float, rounding: str) -> dict[str, float]:
    """What one (epsilon, delta) lets a membership test reach at most, to six decimals.

    Args:
        epsilon: >= 0.
        delta: 0 < delta < 1.
        rounding: `ROUND_FLOOR` for what an attacker has shown, `ROUND_CEILING` for what is promised.
    """
    return {name: _rounded(value, rounding) for name, value in asdict(risk([(epsilon, delta)])).items()}


def _rounded(value: float, rounding: str) -> float:
    return float(Decimal(repr(float(value))).quantize(Decimal("0.000001"), rounding=rounding))


def _code(account: Account, document: Mapping[str, Any]) -> dict[str, Any]:
    declared = list(dict.fromkeys(code for code, _ in account.software))
    same = sum(code == document["code"] for code in declared)
    covered = "all" if declared and same == len(declared) else "some" if same else "none"
    return {"audited": document["code"], "declared": declared, "covered": covered}


def _ledger(account: Account, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of this dataset's ledger that the audit read, and whether the ledger still contains it."""
    seen = (document["ledgers"] or {}).get(account.spend.dataset)
    if seen is None:
        return None
    entries, head = seen["entries"], seen["head"]
    contained = entries <= len(account.digests) and account.digests[entries - 1] == head
    return {"entries": entries, "head": head, "contained": contained}


def _layer(layer: str, checks: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [check["holds"] for check in checks if check["layer"] == layer]
    return {"layer": layer, "what": LAYER_WORDS[layer], "checks": len(mine), "failing": mine.count(False)}


def _game(game: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mechanism": game["mechanism"],
        "claim": game["claim"],
        "delta": game["delta"],
        "canaries": len(game["members"]),
        "members": game["members"].count("1"),
        "runs": game["runs"],
        "adversary": game["adversary"],
        "claim_risk": risk_of(game["claim"], game["delta"], ROUND_CEILING),
        "bounds": [
            {
                "estimator": bound["estimator"],
                "epsilon": _rounded(bound["epsilon"], ROUND_FLOOR),
                "confidence": bound["confidence"],
                "assumption": bound["assumption"],
                "above_claim": bound["epsilon"] > game["claim"],
                "risk": risk_of(bound["epsilon"], game["delta"], ROUND_FLOOR),
            }
            for bound in game["bounds"]
        ],
    }


def _mutants(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The matrix by group and layer, and each row without the time that it took."""
    mutants = document["mutants"]
    if mutants is None:
        return None
    cells: dict[tuple[str, str], list[bool]] = {}
    for row in mutants["rows"]:
        cells.setdefault((row["group"], row["layer"]), []).append(row["killed"])
    kept = ("name", "layer", "group", "mechanisms", "killed", "found_by", "error")
    return {
        "of": mutants["of"],
        "killed": mutants["killed"],
        "code": mutants["code"],
        "same_code": mutants["code"] == document["code"],
        "matrix": [
            {"group": group, "layer": layer, "of": len(killed), "killed": sum(killed)}
            for (group, layer), killed in sorted(cells.items())
        ],
        "rows": [{name: row[name] for name in kept} for row in mutants["rows"]],
    }
