"""Run the project's unmodified apps under Flower's own simulation engine, on Ray, without any network."""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fednas.errors import ConfigurationError, ExchangeError, MissingExtraError

BUNDLED = ("pyproject.toml", "README.md", "LICENSE", "fednas", "server", "client")
_CONNECTION = "fednas"
_MARK = "FEDNAS_RUN_ON_RAY"
_POLL_S = 1.0
_COMMAND_S = 120.0
_GRACE_S = 10.0
# The last line of a traceback; the text of this project's errors holds public facts only.
_REASON = re.compile(r"^fednas\.errors\.\w+: (.+)$", re.MULTILINE)


def run_on_ray(
    app_dir: Path,
    run_config: Mapping[str, str | int | float | bool],
    num_nodes: int,
    *,
    home: Path,
    timeout_s: float = 3600.0,
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
    if not (app_dir / "pyproject.toml").is_file():
        raise ConfigurationError(f"no pyproject.toml in {app_dir}: give the folder of a Flower app")
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("Ray is not installed: pip install 'fednas[simulation]'")
    deadline = time.monotonic() + timeout_s
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    # The folder's name is short: Ray puts sockets into it, whose paths are bounded by 107 bytes.
    with tempfile.TemporaryDirectory(prefix="fednas-", ignore_cleanup_errors=True) as scratch:
        place = _Place.prepare(app_dir, dict(run_config), home=home, scratch=Path(scratch))
        with _superlink(place, deadline) as process:
            run_id = _start_run(place, num_nodes, deadline)
            status = _wait_for_end(place, run_id, process, deadline)
            log = _keep_log(place, run_id)
    if status != "finished:completed":
        reasons = _REASON.findall(log)
        raise ExchangeError(
            reasons[-1] if reasons else f"the run on Ray is {status}: read {home / 'run.log'}"
        )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a run lives: folders, the port of its SuperLink, and the environment of its processes."""

    bundle: Path
    empty: Path
    home: Path
    run_config: Path
    port: int
    mark: str
    environment: Mapping[str, str]

    @classmethod
    def prepare(
        cls, app_dir: Path, run_config: dict[str, str | int | float | bool], *, home: Path, scratch: Path
    ) -> "_Place":
        """Copy the app to a folder whose name `flwr build` accepts and write Flower's configuration."""
        bundle, empty, ray = (scratch / name for name in ("fednas", "empty", "ray"))
        for folder in (bundle, empty, ray):
            folder.mkdir()
        for name in BUNDLED:
            source = app_dir / name
            if source.is_dir():
                shutil.copytree(source, bundle / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy2(source, bundle / name)
        port = _free_port()
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        superlink = {"default": _CONNECTION, _CONNECTION: connection}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": superlink}), encoding="utf-8")
        values = scratch / "run-config.toml"
        values.write_text(tomli_w.dumps(run_config), encoding="utf-8")
        mark = uuid.uuid4().hex
        environment = dict(os.environ) | {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without its own folder Ray joins whatever cluster this machine started last.
            "RAY_TMPDIR": str(ray),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            _MARK: mark,
        }
        environment.pop("RAY_ADDRESS", None)
        return cls(
            bundle=bundle,
            empty=empty,
            home=home,
            run_config=values,
            port=port,
            mark=mark,
            environment=environment,
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _superlink(place: _Place, deadline: float) -> Iterator["subprocess.Popen[bytes]"]:
    """Hold a SuperLink in simulation mode, ready for runs, and end all its processes afterwards."""
    command = [
        _executable("flower-superlink"),
        *(
            "--insecure",
            "--simulation",
            "--isolation",
            "subprocess",
            "--disable-runtime-dependency-installation",
        ),
        *("--host", "127.0.0.1", "--port", str(place.port)),
    ]
    with (place.home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=place.empty,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_healthy(place, process, deadline)
            yield process
        finally:
            _end(process, place.mark)


def _wait_until_healthy(place: _Place, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    url = f"http://127.0.0.1:{place.port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with opener.open(url, timeout=_POLL_S):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise ExchangeError(f"the local SuperLink did not start: read {place.home / 'superlink.log'}")


def _start_run(place: _Place, num_nodes: int, deadline: float) -> str:
    federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
    overrides = ["--federation-config", federation, "--run-config", str(place.run_config)]
    reply = _flwr(place, ["run", str(place.bundle), _CONNECTION, *overrides, "--format", "json"], deadline)
    run_id = reply.get("run-id")
    if not run_id:
        reason = " ".join(str(reply.get("error-message", "no reason given")).split())[:200]
        raise ExchangeError(f"Flower did not start the run: {reason}")
    return str(run_id)


def _wait_for_end(place: _Place, run_id: str, process: "subprocess.Popen[bytes]", deadline: float) -> str:
    """Return how the run ended: `flwr run --stream` would not tell."""
    status = "pending"
    while time.monotonic() < deadline:
        runs = _flwr(place, ["ls", _CONNECTION, "--run-id", run_id, "--format", "json"], deadline).get("runs")
        if isinstance(runs, list) and runs:
            status = str(runs[0]["status"])
        if status.startswith("finished"):
            return status
        if process.poll() is not None:
            return f"without its SuperLink ({status})"
        time.sleep(_POLL_S)
    return f"unfinished at its deadline ({status})"


def _keep_log(place: _Place, run_id: str) -> str:
    """Save and return what the server app logged: the SuperLink forgets it when it ends."""
    log = _call(place, ["log", run_id, _CONNECTION, "--show"], _COMMAND_S)
    (place.home / "run.log").write_text(log, encoding="utf-8")
    return log


def _flwr(place: _Place, arguments: Sequence[str], deadline: float) -> dict[str, object]:
    """Call Flower's command line and return the JSON it prints, or nothing when it prints none."""
    output = _call(place, arguments, min(_COMMAND_S, max(1.0, deadline - time.monotonic())))
    try:
        reply = json.loads(output[output.index("{") :])
    except ValueError:
        return {}
    return dict(reply)


def _call(place: _Place, arguments: Sequence[str], patience_s: float) -> str:
    """Return what Flower's command line prints, or nothing when it takes too long."""
    try:
        done = subprocess.run(
            [_executable("flwr"), *arguments],
            cwd=place.empty,
            env=place.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def _executable(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """End a SuperLink and all that it and Ray started: gently first, then by force."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + _GRACE_S
        while (marked := _marked(mark)) and time.monotonic() < end:
            for pid in marked:
                _signal(pid, number)
            time.sleep(0.2)


def _marked(mark: str) -> list[int]:
    """Return the processes that inherited this mark; daemons leave their group, not their environment.

    Only systems with a /proc can tell; elsewhere the SuperLink itself ends what it started.
    """
    found = []
    needle = f"{_MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = entry.read_bytes()
        except OSError:
            continue
        if needle in environment.split(b"\0"):
            found.append(int(entry.parent.name))
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
