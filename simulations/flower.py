"""Run the project's unmodified apps under Flower's own simulation engine, on Ray, without any network."""

import importlib.util
import tempfile
import time
from pathlib import Path

from fednas.errors import ConfigurationError, MissingExtraError
from simulations.flower_command import FlowerCommand, RunConfig


def run_on_ray(
    app_dir: Path, run_config: RunConfig, num_nodes: int, *, home: Path, timeout_s: float = 3600.0
) -> None:
    """Run an app to its end with `flwr run` on a SuperLink of its own, and leave no process behind.

    Args:
        app_dir: a folder with a pyproject.toml and the packages fednas, server and client.
        run_config: values for keys declared in `[tool.flwr.app.config]`; paths must be absolute, since the
            app starts in an empty folder.
        num_nodes: simulated nodes, each with a `partition-id` from 0 to num_nodes - 1.
        home: where Flower keeps its configuration, its database and its logs; made when missing.
        timeout_s: seconds from the start to the end of everything.

    Raises:
        ConfigurationError: there is no pyproject.toml in app_dir, or num_nodes < 1.
        ExchangeError: the run failed, or took longer than timeout_s.
        MissingExtraError: Ray is not installed.
    """
    if num_nodes < 1:
        raise ConfigurationError(f"expected {num_nodes=} >= 1: simulate at least one node")
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("Ray is not installed: pip install 'fednas[simulation]'")
    # The folder's name is short: Ray puts sockets into it, whose paths are bounded by 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fednas-", ignore_cleanup_errors=True) as scratch:
        ray = Path(scratch, "ray")
        ray.mkdir()
        # Without its own folder and address Ray joins whatever cluster this machine started last.
        apart = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(ray), "RAY_ADDRESS": ""}
        flower = FlowerCommand.prepare(
            app_dir,
            run_config,
            home=home,
            scratch=Path(scratch),
            deadline=time.monotonic() + timeout_s,
            environment=apart,
        )
        command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--disable-runtime-dependency-installation", "--host", "127.0.0.1"]
        log = flower.home / "superlink.log"
        try:
            with flower.process([*command, "--port", str(flower.port)], log) as superlink:
                flower.wait_until_healthy(superlink, log)
                federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
                run_id = flower.start_run("--federation-config", federation)
                flower.finish(run_id, superlink, "the run on Ray")
        finally:
            flower.end_all()
