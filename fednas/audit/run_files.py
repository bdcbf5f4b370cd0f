"""What a run directory holds, read with suspicion: the server's own records and the ledgers of its sites."""

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from fednas.config import StudyConfig, load_sites
from fednas.devices import DeviceProfile
from fednas.errors import FednasError, RunDirectoryError
from fednas.privacy.ledger import Operation, read_statement
from fednas.privacy.marks import Mark, parse_marks
from fednas.privacy.numbers import is_digest
from fednas.privacy.plan import PrivacyPlan
from fednas.privacy.spend_statement import SpendStatement
from fednas.privacy.store import Entry, read_entries
from fednas.privacy.verify import LedgerTampered, Verification, verify
from fednas.schedule import Step, agenda
from fednas.space import Architecture
from fednas.wire import SiteFacts

_T = TypeVar("_T")
_MALFORMED: Final = (
    FednasError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    OSError,
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An answer that the server took, as it wrote it down.

    Args:
        step: the round.
        site: who answered.
        entries: of the site's ledger up to the release.
        head: digest of the release's entry.
        candidates: what an evaluation was about; empty for other rounds.
    """

    step: Step
    site: str
    entries: int
    head: str
    candidates: tuple[Architecture, ...] = ()


@dataclass(kw_only=True)
class ServerFiles:
    """What the server wrote down; what cannot be read is a problem and otherwise left out.

    Args:
        run: the run's identity at every ledger; "" if it cannot be read.
        num_tiers: at the study's beginning; 0 before.
        facts: by site, what it said of itself when its plan was made.
        plans: likewise, its plan.
        claims: by file, the epsilon that it states for the whole run.
        seen: the answers that were taken, in the order of rounds.
        marks: by dataset, the last state that was seen; None where no file of marks is.
        problems: one line each.
    """

    run: str = ""
    num_tiers: int = 0
    facts: Mapping[str, SiteFacts] = field(default_factory=dict)
    plans: Mapping[str, PrivacyPlan] = field(default_factory=dict)
    claims: dict[str, float] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    marks: Mapping[str, Mark] | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SiteLedger:
    """A ledger that verifies.

    Args:
        site: its site's name, or its dataset's where the server knows no such site.
        path: of the file.
        proof: what the verifier found.
        statement: what the ledger says of itself.
        entries: all of them.
    """

    site: str
    path: Path
    proof: Verification
    statement: SpendStatement
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Ledgers:
    """The ledgers of a run.

    Args:
        found: those that verify; of a site that its `site.toml` names, the named one comes first.
        problems: a line for each that does not.
        number: of files that were looked at.
        of_sites: whether the run directory holds the sites themselves, as a simulation's does.
    """

    found: tuple[SiteLedger, ...]
    problems: tuple[str, ...]
    number: int
    of_sites: bool


_NOTHING: Final[tuple[int, dict[str, PrivacyPlan], dict[str, SiteFacts]]] = (0, {}, {})


def read_server(folder: Path, study: StudyConfig) -> ServerFiles:
    """Read all that a server keeps in a run directory.

    Args:
        folder: of the run.
        study: of the run.
    """
    files = ServerFiles()
    manifest = _take(files, folder / "run.json", _manifest, ("", ""))
    files.run = manifest[0]
    begun = (folder / "rounds").is_dir() or (folder / "checkpoints").is_dir()
    if begun or (folder / "plan.json").exists():
        agreed = _take(files, folder / "plan.json", _agreement, _NOTHING)
        files.num_tiers, files.plans, files.facts = agreed
    place = Path(manifest[1]) if manifest[1] else folder / "marks.json"
    if begun or place.exists():
        files.marks = _take(files, place, parse_marks, None)
    _read_rounds(files, folder, study)
    for path in (folder / "result.json", *sorted(folder.glob("tiers/*/privacy.json"))):
        if path.exists():
            name = path.relative_to(folder).as_posix()
            claim = _take(files, path, lambda value: float(value["epsilon"]), None)
            if claim is not None:
                files.claims[name] = claim
    return files


def _read_rounds(files: ServerFiles, folder: Path, study: StudyConfig) -> None:
    steps = {step.round: step for step in agenda(study)}
    numbers = set()
    for path in sorted(folder.glob("rounds/*.json")):
        found = _take(files, path, lambda value: _round(value, steps), None)
        if found is not None:
            if path.stem != f"{found[0]:05d}":
                files.problems.append(f"{path.name} says that it is round {found[0]}")
            files.seen += found[1]
            numbers.add(found[0])
    saved = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
    last = max([*numbers, *saved], default=0)
    missing = [number for number in range(1, last + 1) if number not in numbers]
    if missing:
        files.problems.append(f"the record of round {missing[0]} is missing, round {last} was completed")


def read_ledgers(folder: Path, files: ServerFiles) -> Ledgers:
    """Find and verify the ledgers of a run: those that its `site.toml` files name, and others in its folder.

    Args:
        folder: of the run.
        files: what the server wrote down.
    """
    problems = []
    try:
        named = {config.ledger.resolve(): config for config in load_sites(folder)}
    except (FednasError, OSError) as error:
        problems.append(_line(error))
        named = {}
    known = {facts.dataset: site for site, facts in files.facts.items()}
    paths = [*named, *(p for p in sorted(folder.resolve().rglob("*.sqlite")) if p not in named)]
    ledgers = []
    for path in paths:
        config = named.get(path)
        if config is not None and config.name not in files.facts and not path.exists():
            continue  # it never took part
        name = path.name if config is None else config.name
        try:
            ledger = _ledger(path)
        except (LedgerTampered, FednasError, sqlite3.Error) as error:
            problems.append(f"{name}: {_line(error)}")
            continue
        dataset = ledger.proof.dataset
        if config is not None and config.dataset != dataset:
            problems.append(f"{name}: the ledger is that of {dataset}, not of {config.dataset}")
        site = config.name if config is not None else known.get(dataset, dataset)
        ledgers.append(replace(ledger, site=site))
    return Ledgers(
        found=tuple(ledgers), problems=tuple(problems), number=len(paths), of_sites=bool(named or problems)
    )


def _ledger(path: Path) -> SiteLedger:
    return SiteLedger(
        site="",
        path=path,
        proof=verify(path),
        entries=read_entries(path),
        statement=read_statement(path),
    )


def _take(files: ServerFiles, path: Path, parse: Callable[[dict[str, Any]], _T], default: _T) -> _T:
    """What a JSON file says, or a default and one more problem."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise RunDirectoryError("it is no JSON object")
        return parse(value)
    except _MALFORMED as error:
        files.problems.append(f"{path.name} cannot be read: {_line(error)}")
        return default


def _line(error: Exception) -> str:
    """The first line of an error that is not the user's mistake, shortened."""
    text = (str(error).splitlines() or [""])[0][:200]
    return text if isinstance(error, FednasError | LedgerTampered) else f"{type(error).__name__}: {text}"


def _manifest(value: dict[str, Any]) -> tuple[str, str]:
    run, marks = value["run"], value.get("marks") or ""
    if not isinstance(marks, str):
        raise ValueError("it names no file of marks")
    Operation(run=run, round=0, kind="train", nonce="audit", digest="0" * 64)  # a name that a ledger takes
    return run, marks


def _agreement(value: dict[str, Any]) -> tuple[int, dict[str, PrivacyPlan], dict[str, SiteFacts]]:
    number = value["num_tiers"]
    if type(number) is not int or number < 1:
        raise ValueError("it counts no tiers")
    plans = {}
    for entry in value["plans"]:
        plan = PrivacyPlan.from_json(entry["canonical"])
        if plan.id != entry["id"]:
            raise ValueError(f"it holds a plan under another name, {str(entry['id'])[:16]}")
        plans[plan.id] = plan
    facts = {
        name: SiteFacts(**{**site["facts"], "device": DeviceProfile.from_dict(site["facts"]["device"])})
        for name, site in value["sites"].items()
    }
    return number, {name: plans[site["plan"]] for name, site in value["sites"].items()}, facts


def _round(value: dict[str, Any], steps: Mapping[int, Step]) -> tuple[int, list[Seen]]:
    number = value["round"]
    if type(number) is not int or number not in steps or steps[number].kind != value["kind"]:
        raise ValueError("the study has no such round")
    trials = value.get("trials", [])
    candidates = tuple(Architecture.from_json(trial["architecture"]) for trial in trials)
    seen = []
    for site, outcome in value["sites"].items():
        if outcome["outcome"] == "ok":
            entries, head = outcome["entries"], outcome["head"]
            if type(entries) is not int or entries < 1 or not is_digest(head):
                raise ValueError("it holds no state of a ledger")
            seen.append(
                Seen(step=steps[number], site=site, entries=entries, head=head, candidates=candidates)
            )
    return number, seen
