"""Layer L0: what the ledger says is what was released, recomputed and put under pressure."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

from fednas.audit.accounts import ACCOUNTS, the_plan_costs_what_it_says
from fednas.audit.conversations import sites_answer, sites_refuse
from fednas.audit.drills import DRILLS, check
from fednas.audit.findings import Check, Finding
from fednas.audit.recount import Mechanism, disagreements, recount
from fednas.audit.run_files import Seen, ServerFiles, SiteLedger, read_ledgers, read_server
from fednas.audit.subject import Subject
from fednas.errors import FednasError
from fednas.privacy import verify
from fednas.privacy.ledger import Operation
from fednas.privacy.marks import Mark
from fednas.schedule import StepKind, agenda, release_schedule
from fednas.space.cost import cost_of
from fednas.wire import SiteFacts

_ASKED: Final[Mapping[StepKind, str]] = {
    "search": "train",
    "final": "final",
    "generation": "evaluate",
    "report": "evaluate",
}
_SHOWN: Final = 3  # problems of a check that are spelt out


def check_conformance(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Yield what this layer finds: of the run's own files, if it is a run, then by drills.

    Args:
        subject: what is audited.
        folder: empty, for the files of rehearsals.
    """
    if subject.run is not None:
        yield from check_run(subject, subject.run)
    for drill in DRILLS:
        yield from _held(drill, folder / drill.__name__)
    yield from _held(partial(sites_refuse, subject), folder / "sites_refuse")
    for drill in ACCOUNTS:
        yield from _held(drill, folder / drill.__name__)
    for scene in (sites_answer, the_plan_costs_what_it_says):
        yield from _held(partial(scene, subject), folder / scene.__name__)


def _held(drill: Callable[[Path], Iterator[Check]], folder: Path) -> Iterator[Check]:
    """A drill's checks; a correct system raises nothing in it."""
    folder.mkdir()
    try:
        yield from drill(folder)
    except FednasError as error:
        yield check("what a rehearsal may ask is answered", False, f"{type(error).__name__}: {error}")


def check_run(subject: Subject, run: Path) -> Iterator[Check]:
    """Hold what the server of a run wrote down against the ledgers of its sites; the files are only read.

    Args:
        subject: of the run.
        run: its directory.
    """
    files = read_server(run, subject.study)
    yield _rule("the server's records can be read and are complete", files.problems, _counted(files))
    yield _rule("the plans allow what the study's schedule needs and no more", _schedule(subject, files))
    travels = "the epsilon that travels with the networks is that of the plans"
    yield _rule(travels, _stated(files), _claims(files))
    ledgers = read_ledgers(run, files)
    if not ledgers.number and not ledgers.problems:
        yield check(
            "the run directory holds no ledgers",
            True,
            "they are with the sites: what was charged is verified there, with `fednas ledger verify`",
        )
        return
    whole = "every ledger is whole, in its order and signed by its own key"
    yield _rule(whole, ledgers.problems, f"{ledgers.number} ledgers")
    by_site: dict[str, SiteLedger] = {}
    for ledger in ledgers.found:
        by_site.setdefault(ledger.site, ledger)
    missing = sorted({seen.site for seen in files.seen} - set(by_site))
    absent = [f"{site}: it answered, and its ledger is not here" for site in missing if ledgers.of_sites]
    entries = sum(ledger.proof.entries for ledger in by_site.values())
    for name, found, detail in (
        (
            "the ledgers are those that the server met, and opened the plans that it holds",
            [*absent, *_met(files, by_site)],
            f"{len(by_site)} sites" + (f"; no ledger of {', '.join(missing)} is here" if missing else ""),
        ),
        (
            "every answer that the server took is a release of that round in its site's ledger",
            _released(files, by_site),
            f"{len(files.seen)} answers, {entries} entries",
        ),
        (
            "every release was charged beforehand, with what its round costs",
            _charged(subject, files, by_site),
            "",
        ),
        (
            "no ledger holds a charge of this run that the study does not ask for",
            _asked(subject, files, by_site),
            _unanswered(files, by_site),
        ),
        ("every ledger holds the last state that the server saw of it", _marked(files, by_site), ""),
        (
            "no ledger was made with reproducible noise",
            [f"{name}: its noise can be subtracted" for name, one in by_site.items() if one.proof.seeded],
            "",
        ),
        ("no stream claims more than its owner allows", *_capped(by_site)),
        ("independent accountants agree on what every stream of every ledger cost", *_agreed(by_site)),
    ):
        yield _rule(name, found, detail)


def _rule(name: str, problems: Sequence[str], detail: str = "") -> Check:
    rest = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return check(name, not problems, "; ".join(problems[:_SHOWN]) + rest if problems else detail)


def _counted(files: ServerFiles) -> str:
    return f"{len({seen.step.round for seen in files.seen})} rounds, {len(files.facts)} sites"


def _schedule(subject: Subject, files: ServerFiles) -> list[str]:
    """The plans, which the server holds, against the study."""
    if not files.plans:
        return []
    schedule = release_schedule(subject.study, files.num_tiers)
    wanted = {name: schedule.amount(name) for name in ("search", "alphas", "fitness", "final")}
    clips = {"alphas": schedule.architecture_clip_norm, "fitness": 1.0}
    problems = []
    for site, plan in files.plans.items():
        amounts = {allowance.name: allowance.amount for allowance in plan.allowances}
        if amounts != {name: amount for name, amount in wanted.items() if amount}:
            problems.append(f"{site}: its plan allows {amounts}, the schedule has {wanted}")
        for allowance in plan.allowances:
            q = 1.0 if allowance.name == "fitness" else schedule.sampling_probability
            terms = (q, clips.get(allowance.name, schedule.clip_norm))
            if (allowance.sampling_probability, allowance.clip_norm) != terms:
                problems.append(f"{site}: {allowance.name} has another sampling probability or clip norm")
        if dict(plan.proportions) != subject.study.privacy.proportions:
            problems.append(f"{site}: its plan divides the records otherwise than the study")
        bound = min(subject.study.privacy.epsilon, files.facts[site].epsilon_cap)
        if not plan.claim <= bound:
            problems.append(f"{site}: its plan costs {plan.claim:.4f}, more than {bound:g}")
    return problems


def _claims(files: ServerFiles) -> str:
    return ", ".join(f"{plan:.4f}" for plan in sorted({plan.claim for plan in files.plans.values()}))


def _stated(files: ServerFiles) -> list[str]:
    """Every epsilon that the run states, against the largest of its plans."""
    if not files.plans:
        return [f"{name} states an epsilon, and there is no plan" for name in files.claims]
    claim = max(plan.claim for plan in files.plans.values())
    return [
        f"{name} states {stated:.6f}, the plans cost {claim:.6f}"
        for name, stated in files.claims.items()
        if not math.isclose(stated, claim, rel_tol=1e-9)
    ]


def _met(files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> list[str]:
    """The key, the dataset, the state at the greeting, and the plan that was opened."""
    problems, answered = [], {seen.site for seen in files.seen}
    for site, ledger in ledgers.items():
        if site not in files.facts:
            continue  # of a dataset that took no part
        facts, plan = files.facts[site], files.plans[site]
        problem = _lost(ledger, facts)
        if facts.dataset != ledger.proof.dataset:
            problem = f"it is the ledger of {ledger.proof.dataset}"
        opened = [e.body["id"] for e in ledger.entries if e.kind == "PLAN" and e.body["run"] == files.run]
        if opened not in ([plan.id], []) or (not opened and site in answered):
            problem = "it opened another plan than the server holds for it"
        if problem:
            problems.append(f"{site}: {problem}")
    return problems


def _lost(ledger: SiteLedger, state: Mark | SiteFacts) -> str:
    """Why a ledger has never been in a state, or nothing."""
    if state.entries < 1 or state.signer != ledger.proof.signer:
        return "its ledger is signed by another key than the server saw"
    if state.entries > ledger.proof.entries or ledger.entries[state.entries - 1].digest != state.head:
        return f"its ledger has never been in the state of {state.entries} entries that the server saw"
    return ""


def _operation(files: ServerFiles, site: str, number: int, kind: StepKind) -> str:
    """The ledger's name of a round: written down here again, so that an audit notices a change there."""
    if not files.run:
        return ""  # run.json cannot be read: no request of it has a name
    asked = _ASKED[kind]
    nonce = hashlib.sha256(f"{files.run}|{number}|{asked}|{site}".encode()).hexdigest()[:16]
    return Operation(run=files.run, round=number, kind=asked, nonce=nonce, digest="0" * 64).id


def _released(files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> list[str]:
    """Every answer that the server took, against the entry that it names."""
    problems, last = [], Counter[str]()
    for seen in files.seen:
        ledger, where = ledgers.get(seen.site), f"round {seen.step.round} of {seen.site}"
        if ledger is None:
            continue
        if seen.entries <= last[seen.site]:
            problems.append(f"{where}: its ledger had not grown since its last answer")
        last[seen.site] = seen.entries
        entry = ledger.entries[seen.entries - 1] if seen.entries <= len(ledger.entries) else None
        if entry is None or (entry.digest, entry.kind) != (seen.head, "RELEASE"):
            problems.append(f"{where}: its ledger holds no release under the head that the server saw")
        elif entry.body["operation"] != _operation(files, seen.site, seen.step.round, seen.step.kind):
            problems.append(f"{where}: the entry is the release of another request")
    return problems


def _charged(subject: Subject, files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> list[str]:
    """Every answer that the server took, against the charges before it."""
    problems = []
    for seen in files.seen:
        if seen.site not in ledgers or seen.site not in files.facts:
            continue
        name = _operation(files, seen.site, seen.step.round, seen.step.kind)
        before = ledgers[seen.site].entries[: seen.entries]
        charges = [e.body["charges"] for e in before if e.kind == "RESERVE" and e.body["operation"] == name]
        expected = _cost(subject, files, seen)
        if not charges or any(charge != expected for charge in charges):
            words = f"charged {charges}" if charges else "not charged"
            problems.append(f"round {seen.step.round} of {seen.site}: {words}, it costs {expected}")
    return problems


def _cost(subject: Subject, files: ServerFiles, seen: Seen) -> dict[str, int]:
    """What a round costs a site, by the study alone."""
    study, kind = subject.study, _ASKED[seen.step.kind]
    if kind == "evaluate":
        device, size = files.facts[seen.site].device, study.training.micro_batch
        space = subject.space
        fitting = [
            a
            for a in seen.candidates
            if space.contains(a) and device.fits(cost_of(space, a, micro_batch=size))
        ]
        return {"fitness": len(fitting)}
    if kind == "final":
        return {"final": study.training.steps_per_round}
    alphas = {"alphas": 1} if study.search.strategy == "differentiable" else {}
    return {"search": study.training.steps_per_round} | alphas


def _asked(subject: Subject, files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> list[str]:
    """Every charge of this run, against the rounds that the study has."""
    problems = []
    for site, ledger in ledgers.items():
        names = {_operation(files, site, s.round, s.kind): s for s in agenda(subject.study)}
        for entry in ledger.entries:
            if entry.kind == "RESERVE" and entry.body["run"] == files.run:
                step = names.get(entry.body["operation"])
                if step is None or (entry.body["round"], entry.body["kind"]) != (
                    step.round,
                    _ASKED[step.kind],
                ):
                    problems.append(f"{site}: entry {entry.seq} charges a request that no round makes")
    return problems


def _unanswered(files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> str:
    """How many releases of this run reached nobody, and how many charges had none."""
    released = charged = 0
    for ledger in ledgers.values():
        own = [e.body for e in ledger.entries if e.kind == "RESERVE" and e.body["run"] == files.run]
        names = {body["operation"] for body in own}
        charged += len(own)
        released += sum(e.kind == "RELEASE" and e.body["operation"] in names for e in ledger.entries)
    taken = sum(seen.site in ledgers for seen in files.seen)
    return f"{charged} charges, {released} releases, {released - taken} of them never reached the server"


def _marked(files: ServerFiles, ledgers: Mapping[str, SiteLedger]) -> list[str]:
    """The server's marks, and that they are not behind its own rounds."""
    problems = []
    last = {seen.site: seen for seen in files.seen}
    for site, ledger in ledgers.items():
        mark = None if files.marks is None else files.marks.get(ledger.proof.dataset)
        if mark is None:
            if site in last:
                problems.append(f"{site}: it answered, and the server keeps no mark of it")
            continue
        problem = _lost(ledger, mark)
        if site in last and mark.entries < last[site].entries:
            problem = "the server's mark is older than an answer that it took"
        if problem:
            problems.append(f"{site}: {problem}")
    return problems


def _capped(ledgers: Mapping[str, SiteLedger]) -> tuple[list[str], str]:
    """Claims as if no noise had been seeded: that it was is a finding of its own."""
    problems, words = [], []
    for site, ledger in ledgers.items():
        statement = ledger.statement
        for spend in statement.streams:
            if not spend.nominal_claimed_epsilon <= statement.cap.epsilon:
                problems.append(
                    f"{site}: {spend.stream} claims {spend.nominal_claimed_epsilon:.4f}, allowed are "
                    f"{statement.cap.epsilon:g}"
                )
        words.append(f"{site} {statement.nominal_claimed_epsilon:.4f} of {statement.cap.epsilon:g}")
    return problems, ", ".join(words)


def _agreed(ledgers: Mapping[str, SiteLedger]) -> tuple[list[str], str]:
    """Every claim and every charge, recounted from the entries."""
    problems, words = [], dict[str, None]()
    for site, ledger in ledgers.items():
        statement, proof = ledger.statement, ledger.proof
        own = recount((entry.kind, entry.body) for entry in ledger.entries)
        for stream in own.claimed:
            spend = statement.stream(stream)
            pairs: list[tuple[str, Counter[Mechanism], float]] = [
                ("claimed", own.claimed[stream], spend.nominal_claimed_epsilon),
                ("charged", own.charged[stream], spend.nominal_charged_epsilon),
            ]
            for what, counted, epsilon in pairs:
                if proof.order:
                    wrong, figures = _filtered(own.charged[stream], statement.cap.delta, proof, epsilon)
                else:
                    wrong, figures = _disagreements(epsilon, tuple(sorted(counted.items())), proof.delta)
                problems += [f"{site}: {stream} {what}: {rule} ({figures})" for rule in wrong]
                if what == "claimed":
                    words[f"{stream}: {figures}"] = None
    return problems, "; ".join(words)


@lru_cache(maxsize=256)
def _disagreements(
    epsilon: float, spent: tuple[tuple[Mechanism, int], ...], delta: float
) -> tuple[list[str], str]:
    return disagreements(epsilon, dict(spent), delta)


def _filtered(
    charged: Mapping[Mechanism, int], delta: float, proof: Any, epsilon: float
) -> tuple[list[str], str]:
    """What a filter let through, by the verifier's own divergences."""
    total = math.fsum(n * verify.renyi(*m)[proof.order - verify.ORDERS.start] for m, n in charged.items())
    proved = max(0.0, total + verify.conversion(proof.order, delta)) if charged else 0.0
    holds = proved <= epsilon * (1 + 1e-9) + 1e-12
    return [] if holds else ["more than its filter allows"], f"{proved:.4f} at order {proof.order}"
