"""The check of a stranger: everything that ledgers, statements and audits prove without any private data."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from fednas.audit.retrial import audit_rows
from fednas.audit.sent import Row, Sent, read_sent
from fednas.errors import FednasError
from fednas.privacy.declaration import code_digest
from fednas.privacy.verify import LedgerTampered, Verification
from fednas.statement import (
    Account,
    Site,
    Statement,
    encode_audit,
    links,
    overview,
    read_account,
    state_account,
)
from fednas.statement.audit import risk_of
from fednas.statement.document import INFINITE
from fednas.statement.tradeoff import risk

__all__ = ["Row", "verify_everything"]

_ROUNDED: Final = 3e-6  # of risks that follow from epsilons of six decimals
_MALFORMED: Final = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclass(kw_only=True)
class _Ledger:
    """A ledger that verifies, and the statements that it gives."""

    path: Path
    proof: Verification
    account: Account
    statements: dict[str | None, Statement] = field(default_factory=dict)

    def state(self, digest: str | None, audits: Mapping[str, Mapping[str, Any]]) -> Statement:
        if digest not in self.statements:
            audit = None if digest is None else audits[digest]
            self.statements[digest] = state_account(self.account, audit)
        return self.statements[digest]


def verify_everything(paths: Sequence[Path]) -> Iterator[Row]:
    """Verify all that somebody was sent; nothing private is needed, and nothing is written.

    Args:
        paths: ledgers, statements, pages, audits, marks, a `study.toml`, under any name; folders of them; run
            directories.

    Yields:
        A row for each thing, as it comes: that it holds, that it does not, or that nobody could verify it
        from what was sent.

    Raises:
        RunDirectoryError: a path is not there.
    """
    sent = read_sent(paths)
    for file, problem in sent.problems:
        yield Row(what="file", subject=sent.name(file), ok=False, words=problem)
    ledgers: list[_Ledger] = []
    for path in sent.ledgers:
        row, ledger = _verified(path, sent)
        yield row
        ledgers += [] if ledger is None else [ledger]
    audits = {sha256(encode_audit(audit)).hexdigest(): audit for _, audit in sent.audits}
    for file, content, document in sent.statements:
        yield from _statement(sent.name(file), content, document, ledgers, audits)
    for file, content in sent.pages:
        yield _page(sent.name(file), content, ledgers, audits)
    for file, content in sent.overviews:
        yield _overview(sent.name(file), content, ledgers, audits)
    digests = {ledger.proof.dataset: ledger.account.digests for ledger in ledgers}
    for file, audit in sent.audits:
        yield from audit_rows(sent.name(file), audit, digests, [content for _, content in sent.studies])
    yield from _unmarked(ledgers, sent)
    if not (sent.problems or sent.ledgers or sent.statements or sent.pages or sent.overviews or sent.audits):
        where = ", ".join(str(path) for path in paths)
        yield Row(what="files", subject=where, ok=False, words="there is no ledger, statement or audit here")


def _verified(path: Path, sent: Sent) -> tuple[Row, _Ledger | None]:
    """A ledger recomputed from its own events, and held against every mark of its dataset."""
    try:
        account = read_account(path)
        proof = account.proof
        marks = sent.marks.get(proof.dataset, [])
        for mark in marks:
            if mark.entries > proof.entries:
                raise LedgerTampered(f"it was cut back: a server saw {mark.entries} entries")
            if account.digests[mark.entries - 1] != mark.head:
                raise LedgerTampered(f"a server saw another entry {mark.entries}: it was replaced")
            if mark.signer != proof.signer:
                raise LedgerTampered("a server saw it signed under another key")
    except (LedgerTampered, FednasError) as error:
        return Row(what="ledger", subject=sent.name(path), ok=False, words=str(error)), None
    claimed = account.spend.statement().claimed_epsilon
    proved = max(stream["claimed_rdp"] for stream in proof.streams.values())
    others = sorted({code for code, _ in account.software} - {code_digest()})
    words = (
        f"{proof.entries} entries, each charge and epsilon recomputed: {claimed:.4f} at delta "
        f"{proof.delta:g} (proved {proved:.4f}), cap {proof.cap_epsilon:g}"
        + (f"; goes on from entry {marks[0].entries} that a server saw" if marks else "")
        + ("; written by other code than is installed here" if others else "")
        + ("; SEEDED: NOTHING IS PROTECTED" if proof.seeded else "")
    )
    row = Row(what="ledger", subject=f"{proof.dataset} ({sent.name(path)})", ok=True, words=words)
    return row, _Ledger(path=path, proof=proof, account=account)


def _statement(
    file: str,
    content: bytes,
    document: Mapping[str, Any],
    ledgers: Sequence[_Ledger],
    audits: Mapping[str, Mapping[str, Any]],
) -> Iterator[Row]:
    """A statement made again from its ledger and its audit, and its risks from its own epsilons."""
    subject = f"{document['dataset']!s:.80} ({file})"
    mine = [ledger for ledger in ledgers if ledger.proof.dataset == document["dataset"]]
    audit = document.get("audit")
    digest = audit.get("sha256") if isinstance(audit, dict) else None
    sent = audit is None or (isinstance(digest, str) and digest in audits)
    if not mine:
        words = "its ledger was not sent, or does not verify"
        yield Row(what="statement", subject=subject, ok=False, words=words)
    else:
        if sent:
            found = [_difference(content, document, ledger, digest, audits) for ledger in mine]
            same = f"made again from the ledger{'' if audit is None else ' and the audit'}, bit for bit"
        else:  # all but its audit can still be made again
            found = [_without_audit(document, ledger) for ledger in mine]
            same = "made again from the ledger; all is the same but its part on the audit, see below"
        right = "" in found
        yield Row(what="statement", subject=subject, ok=right, words=same if right else found[0])
    if not sent:
        words = f"the audit that it repeats was not sent, or was edited since (sha256 {digest!s:.64})"
        yield Row(what="statement's audit", subject=subject, ok=False, words=words)
    yield _guarded("risk", subject, lambda: _risks(document))


def _difference(
    content: bytes,
    document: Mapping[str, Any],
    ledger: _Ledger,
    digest: str | None,
    audits: Mapping[str, Mapping[str, Any]],
) -> str:
    """Empty if a ledger and an audit give these very bytes, else what differs."""
    again = ledger.state(digest, audits).document
    if again == content:
        return ""
    stale = _stale(document, ledger)
    if stale:
        return stale
    made = json.loads(again)
    names = [name for name in sorted({*made, *document}) if made.get(name) != document.get(name)]
    return "the ledger gives another " + ", ".join(names or ["spelling of the same values"])


def _without_audit(document: Mapping[str, Any], ledger: _Ledger) -> str:
    made = json.loads(ledger.state(None, {}).document)
    names = [n for n in sorted({*made, *document} - {"audit"}) if made.get(n) != document.get(n)]
    return _stale(document, ledger) or ("the ledger gives another " + ", ".join(names) if names else "")


def _stale(document: Mapping[str, Any], ledger: _Ledger) -> str:
    """A sentence if a statement is of an earlier state of this ledger."""
    stated = document["ledger"]
    head = stated.get("head") if isinstance(stated, dict) else None
    if head == ledger.proof.head or head not in ledger.account.digests:
        return ""
    return (
        f"it is of the first {ledger.account.digests.index(head) + 1} entries, the ledger has grown to "
        f"{ledger.proof.entries} since: make it again"
    )


def _page(
    file: str, content: bytes, ledgers: Sequence[_Ledger], audits: Mapping[str, Mapping[str, Any]]
) -> Row:
    for ledger in ledgers:
        for digest in [None, *audits]:
            if ledger.state(digest, audits).page == content:
                subject = f"{ledger.proof.dataset} ({file})"
                return Row(what="page", subject=subject, ok=True, words="made again, byte for byte")
    words = "no ledger and audit that were sent give this page"
    return Row(what="page", subject=file, ok=False, words=words)


def _overview(
    file: str, content: bytes, ledgers: Sequence[_Ledger], audits: Mapping[str, Mapping[str, Any]]
) -> Row:
    by_head = {(ledger.proof.dataset, ledger.proof.head): ledger for ledger in ledgers}
    sites = []
    for link in links(content):
        ledger = by_head.get((link.dataset, link.head))
        if ledger is None or not (link.audit is None or link.audit in audits):
            missing = "the ledger of " + link.dataset if ledger is None else "the audit"
            words = f"{missing} was not sent, or is in another state"
            return Row(what="overview", subject=file, ok=False, words=words)
        document = json.loads(ledger.state(link.audit, audits).document)
        sites.append(Site(document=document, page=link.page))
    same = bool(sites) and overview(sites) == content
    words = (
        f"made again from {len(sites)} ledgers, byte for byte" if same else "its ledgers give another page"
    )
    return Row(what="overview", subject=file, ok=same, words=words)


def _risks(document: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether each figure of risk is what the epsilons beside it imply."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for bound in document["claim"]["bounds"]:
        epsilon = bound["proved"] if bound["pld"] is None else bound["pld"]
        known = math.inf if epsilon == INFINITE else float(epsilon)
        pairs.setdefault(bound["relation"], []).append((known, float(bound["delta"])))
    wrong = [
        f"{entry['relation']} {name}"
        for entry in document["risk"]["relations"]
        for name, value in risk(pairs[entry["relation"]]).__dict__.items()
        if not abs(float(entry[name]) - value) <= _ROUNDED
    ]
    number = 3 * len(document["risk"]["relations"])
    audit = document.get("audit")
    for game in [] if audit is None else audit["games"]:
        stated = [(game["claim"], game["claim_risk"])]
        stated += [(bound["epsilon"], bound["risk"]) for bound in game["bounds"]]
        for epsilon, figures in stated:
            number += len(figures)
            for name, value in risk_of(epsilon, game["delta"], ROUND_FLOOR).items():
                if not abs(float(figures[name]) - value) <= _ROUNDED:
                    wrong.append(f"{game['mechanism']} {name} at epsilon {epsilon:g}")
    if wrong:
        return False, "not what the epsilons imply: " + ", ".join(wrong)
    return True, f"{number} figures of risk follow from the epsilons beside them"


def _unmarked(ledgers: Sequence[_Ledger], sent: Sent) -> Iterator[Row]:
    """What no file can prove of itself."""
    names = [ledger.proof.dataset for ledger in ledgers if ledger.proof.dataset not in sent.marks]
    if names:
        words = (
            "a site's operator could show an older ledger or write one anew: compare its head or key with "
            "what somebody else kept (send marks.json too, or `fednas ledger verify --head --signer`)"
        )
        yield Row(what="newest state of ledgers", subject=", ".join(names), ok=None, words=words)


def _guarded(what: str, subject: str, check: Callable[[], tuple[bool, str]]) -> Row:
    """A row about values that anybody may have written."""
    try:
        ok, words = check()
    except (*_MALFORMED, FednasError) as error:
        ok, words = False, f"malformed: {error!r:.200}"
    return Row(what=what, subject=subject, ok=ok, words=words)
