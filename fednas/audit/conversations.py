"""Conversations with a rehearsed site over the wire: what is charged, what leaves, and whose ledger it is."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fednas.audit.chosen import size_for
from fednas.audit.drills import check, plan_of, refusal
from fednas.audit.findings import Check
from fednas.audit.ledger_files import Body, edit, read_entries, spoil_reply
from fednas.audit.recount import recount
from fednas.audit.rehearsal import Records, Rehearsal
from fednas.audit.subject import Subject
from fednas.errors import FednasError, LedgerRolledBackError
from fednas.privacy import verify
from fednas.privacy.accounting import epsilon_pld
from fednas.privacy.events import Gaussian, PoissonGaussian
from fednas.privacy.plan import PrivacyPlan
from fednas.search import Policy
from fednas.space import Architecture
from fednas.supernet import flatten
from fednas.wire import Answer, Task, TaskKind

_SIZES: Final = {"weights": 24, "architecture": 8, "fitness": 8}
_SIZE: Final = 48
_CANDIDATES: Final = 3
_PAYS: Final[Mapping[TaskKind, str]] = {"train": "search", "evaluate": "fitness", "final": "final"}


@dataclass(frozen=True, kw_only=True)
class _Talk:
    """A rehearsed site and what it is asked."""

    subject: Subject
    rehearsal: Rehearsal
    architectures: tuple[Architecture, ...]
    weights: tuple[NDArray[np.float32], ...]

    @property
    def ledger(self) -> Path:
        return self.rehearsal.config.ledger

    @property
    def plan(self) -> PrivacyPlan:
        return self.rehearsal.plan

    @property
    def learns(self) -> bool:
        return self.subject.study.search.strategy == "differentiable"

    def kinds(self) -> list[TaskKind]:
        names = {allowance.name for allowance in self.plan.allowances}
        return [kind for kind, allowance in _PAYS.items() if allowance in names]

    def task(self, kind: TaskKind, number: int, *, mark: str = "", shift: float = 0.0) -> Task:
        count = 1
        if kind == "evaluate":
            count = min(len(self.architectures), self.plan.allowance("fitness").amount)
        alphas = Policy(self.subject.space).flat() if kind == "train" and self.learns else None
        weights = [flat + np.float32(shift) for flat in self.weights[:count]]
        return self.rehearsal.task(
            kind, number, self.architectures[:count], weights, alphas=alphas, mark=mark
        )

    def charges(self) -> list[dict[str, int]]:
        return [body["charges"] for _, body in read_entries(self.ledger, "RESERVE")]

    def expected(self, task: Task) -> tuple[dict[str, int], dict[str, tuple[str, tuple[int, ...]]]]:
        """The charges of a task, and its arrays' types and shapes, from the study and the task alone."""
        if task.kind == "evaluate":
            number = len(task.architectures)
            return {"fitness": number}, {"correct": ("int64", (number,))}
        charges = {_PAYS[task.kind]: self.subject.study.training.steps_per_round}
        arrays = {"update": ("float32", task.arrays["weights.0"].shape)}
        if "alphas" in task.arrays:
            charges["alphas"] = 1
            arrays["alphas"] = ("float64", task.arrays["alphas"].shape)
        return charges, arrays


def sites_refuse(subject: Subject, folder: Path) -> Iterator[Check]:
    """What a site must not go along with: spoilt copies of its ledger, numbers that are none, a large delta.

    The plan is a cheap one and asks for counts only: this is about files, and every mechanism shares them.
    """
    plan = plan_of(
        fitness=Gaussian(noise_multiplier=60.0, releases=40),
        final=PoissonGaussian(sampling_probability=0.2, noise_multiplier=8.0, steps=1),
    )
    with _rehearsed(subject, folder / "site", plan) as talk:
        talk.rehearsal.ask(talk.task("evaluate", 1))
        yield from _copied(talk)
        yield from _malformed(talk)
    yield from _deltas(folder, subject, plan)


def sites_answer(subject: Subject, folder: Path) -> Iterator[Check]:
    """All kinds of tasks of the study's own plan, asked, repeated and altered; then what they add up to."""
    with _rehearsed(subject, folder / "site", subject.plan()) as talk:
        answers: dict[TaskKind, Answer] = {}
        for number, kind in enumerate(talk.kinds(), 1):
            yield from _asked(talk, talk.task(kind, number), answers)
        yield from _repeated(talk, answers)
        yield from _added_up(talk)


@contextmanager
def _rehearsed(subject: Subject, folder: Path, plan: PrivacyPlan) -> Iterator[_Talk]:
    """A site with some made-up records in every stream that the plan gives a share."""
    study, space = subject.study, subject.space
    generator = np.random.default_rng([0, subject.seed])
    drawn = [space.smallest(), *(space.sample(generator) for _ in range(20 * _CANDIDATES))]
    architectures = tuple(dict.fromkeys(drawn))[:_CANDIDATES]
    lengths = [len(flatten(space.build(architecture))) for architecture in architectures]
    weights = tuple(generator.normal(0.0, 0.1, length).astype(np.float32) for length in lengths)
    size = size_for(_SIZE, plan.budget.delta)
    with Rehearsal(folder, study=study, plan=plan, declared_size=size) as rehearsal:
        records: dict[str, Records] = {}
        for stream, share in plan.proportions:
            if share > 0.0:
                shape = (_SIZES[stream], *study.data.input_shape)
                labels = generator.integers(0, study.data.num_classes, _SIZES[stream])
                records[stream] = generator.normal(size=shape).astype(np.float32), labels
        rehearsal.fill(records)
        yield _Talk(subject=subject, rehearsal=rehearsal, architectures=architectures, weights=weights)


def _asked(talk: _Talk, task: Task, answers: dict[TaskKind, Answer]) -> Iterator[Check]:
    """One task: what leaves and what is charged."""
    before = len(talk.charges())
    name = {"train": "a training round", "final": "a final round", "evaluate": "an evaluation"}[task.kind]
    charges, arrays = talk.expected(task)
    problem = ""
    try:
        answer = answers[task.kind] = talk.rehearsal.ask(task)
    except FednasError as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        found = {key: (str(array.dtype), array.shape) for key, array in answer.arrays.items()}
        if found != arrays:
            problem = f"{_words(found)} left, expected {_words(arrays)}"
    yield check(
        f"{name} answers with its noised arrays and nothing else", not problem, problem or _words(arrays)
    )
    charged = talk.charges()[before:]
    yield check(
        f"{name} is charged every step and every number that it releases",
        charged == [charges],
        f"charged {charged}, expected {[charges]}",
    )


def _words(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in sorted(arrays.items()))


def _repeated(talk: _Talk, answers: Mapping[TaskKind, Answer]) -> Iterator[Check]:
    """The same tasks again, in this process and in a later one, and others under their names."""
    number, different = len(talk.charges()), []
    for mark in ("", talk.rehearsal.ledger.head):  # a repeat may carry a newer mark
        for round_number, kind in enumerate(talk.kinds(), 1):
            if kind in answers:
                try:
                    again = talk.rehearsal.ask(talk.task(kind, round_number, mark=mark))
                except FednasError as error:
                    different.append(f"{kind}: {error}")
                    continue
                if not _same(again, answers[kind]):
                    different.append(f"{kind}: other bytes")
        talk.rehearsal.reopen()
    yield check(
        "a site that is asked again, before and after a restart, sends the same bytes",
        not different and len(talk.charges()) == number,
        "; ".join(different) or f"{len(talk.charges())} charges after {number} tasks, each asked three times",
    )
    accepted = [
        kind
        for round_number, kind in enumerate(talk.kinds(), 1)
        if refusal(talk.rehearsal.ask, talk.task(kind, round_number, shift=1.0)) is None
    ]
    yield check(
        "a site that is asked for an old round with other weights refuses",
        not accepted and len(talk.charges()) == number,
        f"accepted: {', '.join(accepted)}" if accepted else "",
    )
    facts, config = talk.rehearsal.facts, talk.rehearsal.config
    yield check(
        "a site says of itself what its owner declared",
        (facts.declared_size, facts.epsilon_cap, facts.delta)
        == (config.declared_size, config.epsilon, config.delta),
        f"declared {config.declared_size} records; the rehearsal holds another number",
    )


def _same(left: Answer, right: Answer) -> bool:
    facts = [(a.operation_id, a.head, a.entries, a.signature) for a in (left, right)]
    arrays = [{name: array.tobytes() for name, array in a.arrays.items()} for a in (left, right)]
    return facts[0] == facts[1] and arrays[0] == arrays[1]


def _added_up(talk: _Talk) -> Iterator[Check]:
    """The site's statement against its own entries, stream by stream."""
    statement, own = talk.rehearsal.ledger.statement(), recount(read_entries(talk.ledger))
    try:
        proof = verify.verify(talk.ledger, expected_head=statement.head, expected_signer=statement.signer)
    except verify.LedgerTampered as error:
        yield check("a stranger's verifier accepts the ledger of a site that did as asked", False, str(error))
        return
    wrong, words = [], []
    for stream in own.claimed:
        spend, proved = statement.stream(stream), proof.streams[stream]
        for what, counted, claimed in (
            ("claimed", own.claimed[stream], spend.claimed_epsilon),
            ("charged", own.charged[stream], spend.charged_epsilon),
        ):
            events = [
                PoissonGaussian(sampling_probability=q, noise_multiplier=sigma, steps=amount)
                for (q, sigma), amount in counted.items()
            ]
            again = epsilon_pld(events, statement.delta)
            rdp = verify.epsilon(counted.items(), statement.delta)
            words.append(f"{stream} {what} {claimed:.4f}")
            if not math.isclose(claimed, again, abs_tol=1e-9):
                wrong.append(f"{stream} {what} {claimed:.4f}, its entries say {again:.4f}")
            if not math.isclose(proved[f"{what}_rdp"], rdp, abs_tol=1e-9):
                wrong.append(f"{stream} {what} {proved[f'{what}_rdp']:.4f} by RDP, its entries say {rdp:.4f}")
    yield check(
        "what a ledger claims of each stream is what its entries add up to, the final on all streams",
        not wrong,
        "; ".join(wrong or words),
    )


def _malformed(talk: _Talk) -> Iterator[Check]:
    """Plans with numbers that would blind an accountant, as a server could send them."""
    before = talk.rehearsal.ledger.position()
    accepted, tried = [], 0
    for field, text in _wrong_numbers():
        document = json.loads(talk.plan.to_json())
        place: Body = document["allowances"][-1]
        if field in ("epsilon", "delta"):
            place = document["budget"]
        elif field != "clip_norm":
            place = place["event"]
        place[field] = text
        task = talk.task("evaluate", 100 + tried)
        plan = json.dumps(document, sort_keys=True, separators=(",", ":"))
        wrong = replace(task, plan=plan, run=f"run {tried}")
        tried += 1
        try:
            if refusal(talk.rehearsal.ask, wrong) is None:
                accepted.append(f"{field} {text}")
        except (ArithmeticError, ValueError, TypeError):
            accepted.append(f"{field} {text} reached an accountant")
    yield check(
        "a site refuses a plan with NaN, infinite, negative or huge numbers, and its spend is unchanged",
        not accepted and talk.rehearsal.ledger.position() == before,
        f"accepted: {', '.join(accepted)}"
        if accepted
        else f"{talk.rehearsal.ledger.position()[0] - before[0]} entries were written for {tried} plans",
    )


def _wrong_numbers() -> Iterator[tuple[str, Any]]:
    for field in ("noise_multiplier", "sampling_probability", "clip_norm", "epsilon", "delta"):
        for text in ("nan", "inf", "-inf", "-1.0", "0.0", "1e+300", 1.0, None):
            if (field, text) not in (
                ("epsilon", "inf"),
                ("epsilon", "1e+300"),
            ):  # the owner's cap is the bound
                yield field, text
    for number in (0, -1, 10**9, 1.5, True, "1"):
        yield "steps", number


def _copied(talk: _Talk) -> Iterator[Check]:
    """An older copy, a deleted file, and files that somebody without the key has altered."""
    rehearsal, ledger = talk.rehearsal, talk.ledger
    old, new = ledger.with_name("old"), ledger.with_name("new")
    rehearsal.close()
    shutil.copyfile(ledger, old)
    rehearsal.reopen()
    seen = rehearsal.ask(talk.task("evaluate", 50))
    rehearsal.close()
    shutil.copyfile(ledger, new)

    yield from _altered(talk, new)

    shutil.copyfile(old, ledger)
    rehearsal.reopen()
    before = len(talk.charges())
    refused = refusal(rehearsal.ask, talk.task("evaluate", 51, mark=seen.head))
    yield check(
        "an older copy of a ledger is refused where the server's mark is shown",
        isinstance(refused, LedgerRolledBackError) and len(talk.charges()) == before,
        f"the copy has {before} charges, the server saw one more",
    )
    rehearsal.close()
    shutil.copyfile(new, ledger)
    cut = _tampered(old, expected_head=seen.head)
    rehearsal.reopen()
    answered = refusal(rehearsal.ask, talk.task("evaluate", 50, mark=seen.head))
    yield check("the ledger that the server saw last is accepted", answered is None)
    yield check("a stranger who kept a head sees that a ledger was cut back", cut)
    rehearsal.close()
    ledger.unlink()
    lost = refusal(rehearsal.reopen)
    yield check("a ledger that was deleted is not begun anew beside its key", lost is not None)
    shutil.copyfile(new, ledger)
    rehearsal.reopen()


def _altered(talk: _Talk, intact: Path) -> Iterator[Check]:
    """Edits of a closed file: by the site that opens it, and by the verifier."""

    def understate(body: Body) -> Body:
        return body | {"charges": dict.fromkeys(body["charges"], 1), "digest": "0" * 64}

    for rechained in (False, True):
        edit(talk.ledger, "RESERVE", understate, rechained=rechained)
        fooled = []
        if refusal(talk.rehearsal.reopen) is None:
            fooled.append("its site opened it")
        talk.rehearsal.close()
        if not _tampered(talk.ledger):
            fooled.append("the verifier confirmed it")
        what = "edited and its chain made anew" if rechained else "edited"
        yield check(
            f"a ledger in which a charge was {what} is refused, by its site and by a stranger",
            not fooled,
            "; ".join(fooled),
        )
        shutil.copyfile(intact, talk.ledger)
    spoil_reply(talk.ledger)
    found = _tampered(talk.ledger)
    talk.rehearsal.reopen()
    # Of the site alone: a server would find by the signature what the site had let out.
    sent = refusal(talk.rehearsal.site.perform, talk.task("evaluate", 50)) is None
    yield check("a stored reply that was altered is never sent", found and not sent)
    talk.rehearsal.close()
    shutil.copyfile(intact, talk.ledger)


def _tampered(path: Path, **expected: str) -> bool:
    try:
        verify.verify(path, **expected)
    except verify.LedgerTampered:
        return True
    return False


def _deltas(folder: Path, subject: Subject, plan: PrivacyPlan) -> Iterator[Check]:
    """A delta at which a record could be published."""
    size, delta = int(2.0 / plan.budget.delta), plan.budget.delta
    refused = refusal(Rehearsal, folder / "large", study=subject.study, plan=plan, declared_size=size)
    yield check(
        "a site refuses a delta above 1 / its declared size",
        refused is not None,
        f"delta {delta:g} for {size} records",
    )
