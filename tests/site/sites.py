"""The three tiny sites behind the real client app, and what they are asked."""

import gc
import sqlite3
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from client.app import app
from fednas.config import StudyConfig, dump_study, load_site
from fednas.privacy.budget import PrivacyBudget
from fednas.privacy.plan import PrivacyPlan
from fednas.schedule import release_schedule
from fednas.search import Policy
from fednas.site import open_site
from fednas.space import Architecture, create
from fednas.supernet import Supernet
from fednas.wire import Task, encode_task
from simulations.loopback import InProcessGrid
from tests.simulations import tiny

STUDY = tiny.study(search={"strategy": "differentiable"})
SPACE = create("mlp", (4,), 3)
SUPERNET = Supernet.initialise(SPACE, seed=0)
SMALL, LARGE = SPACE.smallest(), SPACE.largest()
TOO_LARGE_SITE = 2  # cobra, of the small tier


def plan_of(study: StudyConfig = STUDY, *, epsilon: float = 3.0) -> PrivacyPlan:
    return PrivacyPlan.calibrate(
        budget=PrivacyBudget(epsilon=epsilon, delta=study.privacy.delta),
        proportions=study.privacy.proportions,
        schedule=release_schedule(study, 3),
    )


def task(
    kind: str = "train",
    *architectures: Architecture,
    study: StudyConfig = STUDY,
    plan: PrivacyPlan | None = None,
    alphas: bool = False,
) -> Task:
    paths = architectures or (SMALL,)
    arrays: dict[str, Any] = {f"weights.{i}": SUPERNET.gather(path) for i, path in enumerate(paths)}
    if alphas:
        arrays["alphas"] = Policy(SPACE).flat()
    return Task(
        kind=kind,  # type: ignore[arg-type]
        run="run",
        round=1,
        plan=(plan or plan_of(study)).to_json(),
        study=dump_study(study),
        architectures=paths,
        arrays=arrays,
    )


class Sites:
    """The three tiny sites behind the real client app."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._grid = InProcessGrid(
            app,
            {i + 1: {"partition-id": i} for i in range(tiny.NUM_SITES)},
            {"sites-dir": str(path / "sites")},
        )

    def send(self, content: RecordDict, kind: str = "train", site: int = 0) -> RecordDict:
        (reply,) = self._grid.send_and_receive([Message(content, site + 1, kind, ttl=60.0)])
        assert not reply.has_error(), "the app answers whatever happens"
        return reply.content

    def ask(self, what: Task, site: int = 0) -> RecordDict:
        return self.send(encode_task(what), "evaluate" if what.kind == "evaluate" else "train", site)

    def entries(self, site: int = 0) -> list[str]:
        """The kinds of entries that requests make in a site's ledger; empty while there is no file."""
        ledger = load_site(self.path / "sites" / f"site-{site}" / "site.toml").ledger
        if not ledger.exists():
            return []
        with sqlite3.connect(ledger) as connection:
            rows = connection.execute("SELECT kind FROM entries ORDER BY seq").fetchall()
        connection.close()
        return [row[0] for row in rows if row[0] not in ("CHECKPOINT", "DECLARE")]

    def restart(self) -> None:
        open_site.cache_clear()
        gc.collect()  # closes the ledger's file
