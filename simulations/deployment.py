"""Run the project's unmodified apps as a deployment does, on one machine: TLS, node keys, processes."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from client.kit import SiteKit
from fednas.config import load_site
from fednas.errors import ExchangeError
from server.kit import ServerKit
from simulations.flower_command import FlowerCommand, RunConfig, free_port

_POLL_S: Final = 1.0


def run_deployed(
    app_dir: Path, run_config: RunConfig, sites: Sequence[Path], *, home: Path, timeout_s: float = 3600.0
) -> None:
    """Run an app to its end on a SuperLink and a SuperNode a site, and leave no process behind.

    All is what a server's and a site's kit say: only the addresses are those of one machine.

    Args:
        app_dir: a folder with a pyproject.toml and the packages fednas, server and client.
        run_config: values for keys declared in `[tool.flwr.app.config]`; paths must be absolute.
        sites: the `site.toml` of each.
        home: folder of keys, certificates, databases and logs; what is there is used again.
        timeout_s: seconds from the start to the end of everything.

    Raises:
        ConfigurationError: there is no pyproject.toml in app_dir, or a site is malformed.
        ExchangeError: a process did not start, the run failed, or took longer than timeout_s.
    """
    server = ServerKit.prepare(home / "server", [], port=free_port())
    kits = {
        (name := load_site(site).name): SiteKit.prepare(
            home / "sites" / name,
            site,
            superlink=f"127.0.0.1:{server.port}",
            authority=server.authority,
            port=free_port(),
        )
        for site in sites
    }
    logs = home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fednas-", ignore_cleanup_errors=True) as scratch:
        flower = FlowerCommand.prepare(
            app_dir,
            run_config,
            home=home / "flower",
            scratch=Path(scratch),
            deadline=time.monotonic() + timeout_s,
            port=server.port,
            certificate=server.authority,
        )
        with ExitStack() as stack:
            stack.callback(flower.end_all)
            superlink = stack.enter_context(flower.process(server.superlink, logs / "superlink.log"))
            flower.wait_until_healthy(superlink, logs / "superlink.log")
            stack.enter_context(flower.process(server.superexec, logs / "superexec.log"))
            for name, kit in kits.items():
                flower.register(kit.public_key, name)
                # Every device has a home of its own.
                own = {"FLWR_HOME": str(kit.folder / "flower")}
                stack.enter_context(flower.process(kit.supernode, logs / f"{name}.log", own))
            _wait_for_nodes(flower, len(kits), logs)
            flower.finish(flower.start_run(), superlink, "the deployed run")


def _wait_for_nodes(flower: FlowerCommand, number: int, logs: Path) -> None:
    while time.monotonic() < flower.deadline:
        nodes = flower.ask(["supernode", "list", "fednas", "--format", "json"]).get("nodes")
        if isinstance(nodes, list) and sum(node.get("status") == "online" for node in nodes) >= number:
            return
        time.sleep(_POLL_S)
    raise ExchangeError(f"not all {number} SuperNodes came online: read the logs in {logs}")
