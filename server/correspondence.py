"""Ask the sites: take what is signed and newer than what was seen before, remember who is out."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fednas.config import FederationSection
from fednas.errors import BudgetExceededError, ExchangeError, LedgerRolledBackError
from fednas.logs import Event, tagged
from fednas.privacy.marks import Mark
from fednas.privacy.signing import TaskSigner
from fednas.wire import (
    PROTOCOL,
    Answer,
    Refusal,
    SiteFacts,
    Task,
    check_answer,
    check_signature,
    decode,
    decode_facts,
    encode_task,
)
from server.cohort import AWAY, Member
from server.exchange import exchange, num_bytes
from server.marks import Marks, check_answered, check_shown
from server.plausibility import check_plausible

_log = logging.getLogger("fednas.server")

_MESSAGE = {"train": "train", "final": "train", "evaluate": "evaluate"}


@final
class Correspondence:
    """One study's questions to its sites, over any Flower grid.

    Args:
        grid: where the sites are.
        members: the sites of the study; who is away now is greeted again in each round, and asked once back.
        federation: deadline and quorum.
        marks: where each ledger was last seen.
        signer: of what is asked; None where the sites know no key of this server.
        repeats: the first round may have been asked before, by a server that then stopped.

    Guarantees:
        - An answer is handed out only once the mark that it moved is durable.
        - A ledger that went back does not take part again before a later start finds it whole.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        members: Sequence[Member],
        federation: FederationSection,
        marks: Marks,
        repeats: bool,
        signer: TaskSigner | None = None,
    ) -> None:
        self._grid = grid
        self._members = tuple(members)
        self._federation = federation
        self._marks = marks
        self._repeats = repeats
        self._signer = signer
        self._away = {member.facts.site: member.away for member in members if member.away}
        self._retired: dict[str, str] = {}
        self._answered: dict[str, int] = {}  # site -> entries of its ledger at its last answer

    @property
    def members(self) -> tuple[Member, ...]:
        """All members in their order, each at the node from which it answers now."""
        return self._members

    @property
    def refused(self) -> Mapping[str, str]:
        """Who does not take part any more, by name, and the constant code that says why."""
        return {**self._away, **self._retired}

    def active(self) -> list[Member]:
        """The members that are asked, in their order."""
        refused = self.refused
        return [member for member in self._members if member.facts.site not in refused]

    def remaining(self) -> list[Member]:
        """The members that have not left for good, in their order: who is away now may come back.

        What a round asks is drawn from these: a server that takes up a round which was asked before, when
        others were away, has to ask the same.
        """
        return [member for member in self._members if member.facts.site not in self._retired]

    def ask(self, tasks: Mapping[Member, Task]) -> tuple[dict[Member, Answer], dict[str, Any]]:
        """Send tasks; return the valid answers in the order of the tasks, and what became of each site.

        Raises:
            BudgetExceededError: no site has any budget left.
            ExchangeError: fewer sites than the quorum answered, or none is left for other reasons.
            RunDirectoryError: the marks cannot be kept.
        """
        members = {member.node: member for member in tasks}
        messages = [self._message(member, task) for member, task in tasks.items()]
        sent = {member.facts.site: num_bytes(m.content) for member, m in zip(tasks, messages, strict=True)}
        received = dict.fromkeys(sent, 0)
        answers: dict[Member, Answer] = {}
        sites: dict[str, Any] = {}
        back: dict[int, SiteFacts] = {}

        def receive(node: int, reply: Message) -> None:
            if node not in members:
                back[node] = decode_facts(reply.content)
                return
            member = members[node]
            received[member.facts.site] = num_bytes(reply.content)
            found = self.examine(member, tasks[member], reply.content)
            if isinstance(found, Refusal):
                sites[member.facts.site] = {"outcome": found.value}
                return
            answers[member] = found
            sites[member.facts.site] = {"outcome": "ok", "head": found.head, "entries": found.entries}

        outcome = exchange(
            self._grid,
            [*messages, *self._greetings()],
            on_reply=receive,
            deadline_s=self._federation.deadline_s,
        )
        late = dict.fromkeys((*outcome.late, *outcome.rejected, *outcome.skipped), "LATE")
        for node, code in {**outcome.failed, **late}.items():
            if node in members:
                sites[members[node].facts.site] = {"outcome": code}
        for member, task in tasks.items():
            site = member.facts.site
            _report(site, sites[site]["outcome"], task)
            sites[site] |= {"sent_bytes": sent[site], "received_bytes": received[site]}
        self._marks.keep({member.facts.dataset: _mark(member, answer) for member, answer in answers.items()})
        self._check_enough(len(answers), len(tasks), sites)
        self._repeats = False
        self._answered |= {member.facts.site: answer.entries for member, answer in answers.items()}
        self._welcome(back)
        return answers, dict(sorted(sites.items()))

    def _greetings(self) -> list[Message]:
        """To the nodes that no member answers from, as long as a member is away: it may be there again."""
        if AWAY not in self._away.values():
            return []
        known = {member.node for member in self._members}
        strangers = sorted(set(self._grid.get_node_ids()) - known)
        return [Message(RecordDict(), node, "query.hello") for node in strangers]

    def _welcome(self, back: Mapping[int, SiteFacts]) -> None:
        """Take in the members that are there again: what a site says now must be what it said at first."""
        places = Counter(facts.site for facts in back.values())
        for node, facts in back.items():
            index = next((i for i, m in enumerate(self._members) if m.facts.site == facts.site), None)
            if index is None or self._away.get(facts.site) != AWAY or places[facts.site] > 1:
                continue
            member = self._members[index]
            same = (PROTOCOL, member.facts.dataset, member.facts.signer)
            if (facts.protocol, facts.dataset, facts.signer) != same:
                left_out = tagged(Event.SITE_LEFT_OUT, site=member.facts.site, code=AWAY)
                _log.warning(
                    "%s is not taken for who was away: its protocol, dataset or key is another",
                    member.facts.site,
                    extra=left_out,
                )
                continue
            shown = Mark(signer=facts.signer, entries=facts.entries, head=facts.head)
            try:
                check_shown(self._marks.of(facts.dataset), shown)
            except LedgerRolledBackError as error:
                self._suspend(facts.site, str(error))
                continue
            del self._away[facts.site]
            returned = replace(member, node=node, away="")
            self._members = (*self._members[:index], returned, *self._members[index + 1 :])
            site = member.facts.site
            _log.info("%s is there again", site, extra=tagged(Event.SITE_RETURNED, site=site))

    def examine(self, member: Member, task: Task, content: RecordDict) -> Answer | Refusal:
        """A site's answer, once everything about it has been checked, or why there is none.

        Args:
            member: who was asked.
            task: what it was asked, without a mark.
            content: what came in its name.

        Raises:
            ExchangeError: it is malformed, not what was asked for, beyond what an honest site could give, or
                not signed by the ledger that the site showed.
        """
        site = member.facts.site
        answer = decode(content)
        if answer in (Refusal.BUDGET_EXHAUSTED, Refusal.WITHDRAWN):
            self._retired[site] = answer.value
        if answer is Refusal.LEDGER_ROLLED_BACK:
            self._suspend(site, "its ledger has never been where it was seen before")
        if isinstance(answer, Refusal):
            return answer
        if answer.operation_id != task.operation_id(site):
            raise ExchangeError("a reply answers another request: of another round, plan, path or weights")
        check_answer(answer, task)
        check_plausible(answer, task, member.facts)
        check_signature(answer, member.facts)
        try:
            check_answered(
                self._marks.of(member.facts.dataset),
                _mark(member, answer),
                repeats_after=self._answered.get(site, 0) if self._repeats else None,
            )
        except LedgerRolledBackError as error:
            self._suspend(site, str(error))
            return Refusal.LEDGER_ROLLED_BACK
        return answer

    def _message(self, member: Member, task: Task) -> Message:
        mark = self._marks.of(member.facts.dataset)
        marked = replace(task, mark="" if mark is None else mark.head)
        if self._signer is not None:
            marked = marked.signed(self._signer, member.facts.site)
        return Message(encode_task(marked), member.node, _MESSAGE[task.kind])

    def _suspend(self, site: str, reason: str) -> None:
        self._away[site] = Refusal.LEDGER_ROLLED_BACK.value
        report_rollback(site, reason)

    def _check_enough(self, answered: int, asked: int, sites: Mapping[str, Mapping[str, Any]]) -> None:
        if not self.active():
            codes = set(self.refused.values())
            if codes == {Refusal.BUDGET_EXHAUSTED.value}:
                raise BudgetExceededError(
                    "every site refused: BUDGET_EXHAUSTED; their ledgers hold earlier runs on the same data, "
                    "and only their owners can raise the cap"
                )
            raise ExchangeError(f"no site is left to ask ({', '.join(sorted(codes))}); mend them and resume")
        if answered < self._federation.quorum * asked:
            codes = {entry["outcome"] for entry in sites.values() if entry["outcome"] != "ok"}
            raise ExchangeError(
                f"{answered} of {asked} sites answered ({', '.join(sorted(codes))}), fewer than the quorum "
                f"of {self._federation.quorum:.0%}; mend them and resume"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint remembers of the sites."""
        return {"retired": self._retired, "answered": self._answered}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self._retired = {str(site): str(code) for site, code in state["retired"].items()}
        self._answered = {str(site): int(entries) for site, entries in state["answered"].items()}


def report_rollback(site: str, reason: str) -> None:
    """Say in one line on the server's log that a site is out because its ledger went back."""
    _log.warning(
        "%s: %s: %s; it takes no part until its owner restores the newest copy and the run is resumed",
        site,
        Refusal.LEDGER_ROLLED_BACK.value,
        reason,
        extra=tagged(Event.LEDGER_ROLLED_BACK, site=site, code=Refusal.LEDGER_ROLLED_BACK.value),
    )


def _report(site: str, outcome: str, task: Task) -> None:
    """Say in one line that a site's answer is missing, unless that was said already."""
    if outcome not in ("ok", Refusal.LEDGER_ROLLED_BACK):
        fields = tagged(Event.NO_ANSWER, site=site, code=outcome, round=task.round)
        _log.info("%s gave no answer to round %d: %s", site, task.round, outcome, extra=fields)


def _mark(member: Member, answer: Answer) -> Mark:
    return Mark(signer=member.facts.signer, entries=answer.entries, head=answer.head)
