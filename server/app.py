"""The Flower ServerApp: meet the sites, agree on plans, run the study, export a network for every tier."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fednas.config import StudyConfig, space_of
from fednas.errors import ConfigurationError, LedgerRolledBackError, RunDirectoryError
from fednas.logs import Event, study_log, tagged
from fednas.privacy.marks import Mark
from fednas.privacy.signing import TaskSigner
from fednas.wire import PROTOCOL, Refusal, decode, decode_facts
from server.agreement import Agreement, agree, recall
from server.checkpoint import RunDirectory
from server.cohort import Cohort, Member
from server.coordinator import Coordinator
from server.correspondence import Correspondence, report_rollback
from server.exchange import exchange
from server.marks import Marks, check_shown
from server.report import Completed, write_results

app = ServerApp()

_log = logging.getLogger("fednas.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or resume, the study of the run directory that the run's configuration names."""
    path = str(context.run_config.get("run-dir", ""))
    if not path:
        raise ConfigurationError("no run directory: pass --run-config \"run-dir='/path/to/run'\"")
    marks = str(context.run_config.get("marks-file", ""))
    key = str(context.run_config.get("signing-key-file", ""))
    with study_log("fednas"):
        run_study(
            grid,
            Path(path),
            resume=bool(context.run_config.get("resume", False)),
            marks_file=Path(marks) if marks else None,
            signer=TaskSigner.read(Path(key)) if key else None,
        )


def run_study(
    grid: Grid,
    path: Path,
    *,
    resume: bool,
    marks_file: Path | None = None,
    signer: TaskSigner | None = None,
) -> None:
    """Conduct a study over any grid, then write its results: `conduct` says with what."""
    with RunDirectory(path).held():
        write_results(conduct(grid, path, resume=resume, marks_file=marks_file, signer=signer))


def conduct(
    grid: Grid,
    path: Path,
    *,
    resume: bool,
    marks_file: Path | None = None,
    signer: TaskSigner | None = None,
) -> Completed:
    """Run all rounds of a study over any grid.

    Args:
        grid: where the sites are.
        path: a run directory made by `server.checkpoint.create_run`.
        resume: continue after the last whole round; without it a directory that has begun is refused.
        marks_file: where the sites' ledgers were last seen, by this run or others; None keeps it in the run
            directory, as `marks.json`.
        signer: of what the sites are asked; a site that names a server's key does nothing without it.

    Returns:
        The study after its last round, its results not yet written.

    Raises:
        FednasError: one line each, with what to do.
    """
    directory = RunDirectory(path)
    study = directory.study
    space = space_of(study)
    begun = (path / "checkpoints").exists()
    if begun and not resume:
        raise RunDirectoryError(f"{path} holds a run that has begun; resume it or choose another folder")
    marks = _marks(marks_file or path / "marks.json", begun=begun)
    known = recall(directory)
    members, left_out = screen(meet(grid, study), marks, known)
    absent = [] if known is None else known.absent(members)
    cohort = Cohort([*members, *absent], space, study)
    agreement = agree(directory, cohort, known)
    sites = Correspondence(
        grid,
        members=cohort.members,
        federation=study.federation,
        marks=marks,
        repeats=known is not None,
        signer=signer,
    )
    coordinator = Coordinator(sites, cohort=cohort, agreement=agreement, directory=directory, space=space)
    done = coordinator.resume() if resume else 0
    _log.info(
        "%d sites, %d tiers, %d rounds done",
        len(cohort.members),
        len(cohort.tiers),
        done,
        extra=tagged(Event.SITES_MET, study=study.name, round=done),
    )
    coordinator.run()
    return Completed(
        directory=directory,
        coordinator=coordinator,
        cohort=cohort,
        agreement=agreement,
        left_out=left_out,
        space=space,
    )


def meet(grid: Grid, study: StudyConfig) -> list[Member]:
    """Ask every node for its site's public facts.

    Raises:
        ConfigurationError: a site speaks another protocol.
    """
    members: list[Member] = []

    def receive(node: int, reply: Message) -> None:
        if "facts" not in reply.content.config_records:
            found = decode(reply.content)
            code = found if isinstance(found, Refusal) else Refusal.SITE_FAILURE
            left_out = tagged(Event.SITE_LEFT_OUT, study=study.name, code=code.value)
            _log.warning("a site takes no part: %s", code.value, extra=left_out)
            return
        members.append(Member(node=node, facts=decode_facts(reply.content)))

    nodes = sorted(grid.get_node_ids())
    messages = [Message(RecordDict(), node, "query.hello") for node in nodes]
    exchange(grid, messages, on_reply=receive, deadline_s=study.federation.deadline_s)
    for member in members:
        if member.facts.protocol != PROTOCOL:
            raise ConfigurationError(
                f"{member.facts.site} speaks protocol {member.facts.protocol}, this server {PROTOCOL}; "
                "install one version"
            )
    return members


def screen(
    members: Sequence[Member], marks: Marks, known: Agreement | None
) -> tuple[list[Member], Mapping[str, str]]:
    """Leave out the sites whose ledger is older than it was once seen to be.

    Args:
        members: who answered the greeting.
        marks: where each ledger was last seen.
        known: the agreement of a run that has begun: its sites keep their places, but are not asked.

    Returns:
        The members of the study, and by name the constant code of each site that is none.
    """
    kept: list[Member] = []
    left_out: dict[str, str] = {}
    for member in members:
        facts = member.facts
        try:
            if not facts.signer:
                raise LedgerRolledBackError("it shows no ledger")
            shown = Mark(signer=facts.signer, entries=facts.entries, head=facts.head)
            check_shown(marks.of(facts.dataset), shown)
        except LedgerRolledBackError as error:
            report_rollback(facts.site, str(error))
            if known is None or facts.site not in known.plans:
                left_out[facts.site] = Refusal.LEDGER_ROLLED_BACK.value
                continue
            member = replace(member, away=Refusal.LEDGER_ROLLED_BACK.value)
        kept.append(member)
    if members and not any(not member.away for member in kept):
        raise LedgerRolledBackError(
            "every site refused: LEDGER_ROLLED_BACK; their ledgers are older than they once were: restore "
            "the newest copies and try again"
        )
    return kept, left_out


def _marks(path: Path, *, begun: bool) -> Marks:
    """The marks of a file.

    Raises:
        RunDirectoryError: it is not there, though rounds were completed with it.
    """
    if begun and not path.exists():
        raise RunDirectoryError(
            f"{path} is missing; restore it: without it an older copy of a ledger is not noticed"
        )
    return Marks(path)
