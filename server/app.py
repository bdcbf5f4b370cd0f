"""The Flower ServerApp: meet the sites, plan once, run the study, export a network for every tier."""

import logging
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fednas.config import StudyConfig
from fednas.errors import ConfigurationError, RunDirectoryError
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import release_schedule
from fednas.space import create
from fednas.wire import PROTOCOL, Refusal, decode_facts
from server.checkpoint import RunDirectory
from server.cohort import Cohort, Member
from server.coordinator import Coordinator
from server.exchange import exchange
from server.report import Completed, write_results

app = ServerApp()

_log = logging.getLogger("fednas.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or resume, the study of the run directory that the run's configuration names."""
    path = str(context.run_config.get("run-dir", ""))
    if not path:
        raise ConfigurationError("no run directory: pass --run-config \"run-dir='/path/to/run'\"")
    run_study(grid, Path(path), resume=bool(context.run_config.get("resume", False)))


def run_study(grid: Grid, path: Path, *, resume: bool) -> None:
    """Conduct a study over any grid, then write its results: `conduct` says with what."""
    write_results(conduct(grid, path, resume=resume))


def conduct(grid: Grid, path: Path, *, resume: bool) -> Completed:
    """Run all rounds of a study over any grid.

    Args:
        grid: where the sites are.
        path: a run directory made by `server.checkpoint.create_run`.
        resume: continue after the last whole round; without it a directory that has begun is refused.

    Returns:
        The study after its last round, its results not yet written.

    Raises:
        FednasError: one line each, with what to do.
    """
    directory = RunDirectory(path)
    study = directory.study
    space = create(study.search.space, study.data.input_shape, study.data.num_classes)
    if not resume and (path / "checkpoints").exists():
        raise RunDirectoryError(f"{path} holds a run that has begun; resume it or choose another folder")
    cohort = Cohort(meet(grid, study), space, study)
    plan = agree(directory, study, num_tiers=len(cohort.tiers))
    coordinator = Coordinator(grid, cohort=cohort, plan=plan, directory=directory, space=space)
    done = coordinator.resume() if resume else 0
    _log.info("%d sites, %d tiers, %d rounds done", len(cohort.members), len(cohort.tiers), done)
    coordinator.run()
    return Completed(directory=directory, coordinator=coordinator, cohort=cohort, plan=plan, space=space)


def meet(grid: Grid, study: StudyConfig) -> list[Member]:
    """Ask every node for its site's public facts.

    Raises:
        ConfigurationError: a site speaks another protocol.
    """
    members: list[Member] = []

    def receive(node: int, reply: Message) -> None:
        if "facts" not in reply.content.config_records:
            _log.warning("a node could not open its site: %s", Refusal.SITE_FAILURE.value)
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


def agree(directory: RunDirectory, study: StudyConfig, *, num_tiers: int) -> PrivacyPlan:
    """The plan of the study: calibrated once, then read from the run directory."""
    if (directory.path / "plan.json").exists():
        return PrivacyPlan.from_json(str(directory.read("plan.json").get("canonical")))
    plan = PrivacyPlan.calibrate(
        budget=study.privacy.budget,
        proportions=study.privacy.proportions,
        schedule=release_schedule(study, num_tiers),
    )
    directory.write("plan.json", {"id": plan.id, "canonical": plan.to_json(), "claim": plan.claim})
    return plan
