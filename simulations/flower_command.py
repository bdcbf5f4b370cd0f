"""Flower's own commands on this machine: a bundle of the project's apps, its processes, a run to its end."""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import tomli_w

from fednas.errors import ConfigurationError, ExchangeError

RunConfig = Mapping[str, str | int | float | bool]

_BUNDLED = ("pyproject.toml", "README.md", "LICENSE", "fednas", "server", "client")
_CONNECTION = "fednas"
_MARK = "FEDNAS_FLOWER_COMMAND"
_POLL_S = 1.0
_COMMAND_S = 120.0
_GRACE_S = 10.0
# The last line of a traceback; the text of this project's errors holds public facts only.
_REASON = re.compile(r"^fednas\.errors\.\w+: (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class FlowerCommand:
    """Where Flower's processes live: folders, the port of their SuperLink, and their environment.

    Args:
        bundle: the app, in a folder whose name `flwr build` accepts.
        empty: where processes start.
        home: Flower's configuration, its database and its logs.
        run_config: a TOML file with values for the app.
        port: of the SuperLink on the loopback interface.
        certificate: PEM file of the authority that signed the SuperLink's certificate; None without TLS.
        deadline: of everything, on the monotonic clock.
        mark: by which all processes are known.
        environment: of all processes.
    """

    bundle: Path
    empty: Path
    home: Path
    run_config: Path
    port: int
    certificate: Path | None
    deadline: float
    mark: str
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def prepare(
        cls,
        app_dir: Path,
        run_config: RunConfig,
        *,
        home: Path,
        scratch: Path,
        deadline: float,
        port: int | None = None,
        certificate: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Copy the app to a folder whose name `flwr build` accepts and write Flower's configuration.

        Args:
            app_dir: a folder with a pyproject.toml and the packages fednas, server and client.
            run_config: values for keys declared in `[tool.flwr.app.config]`; paths must be absolute, since
                the app starts in an empty folder.
            home: see `FlowerCommand.home`; made when missing.
            scratch: a folder that goes afterwards.
            deadline: see `FlowerCommand.deadline`.
            port: of the SuperLink; None finds a free one.
            certificate: see `FlowerCommand.certificate`.
            environment: more variables for all processes.

        Raises:
            ConfigurationError: there is no pyproject.toml in app_dir.
        """
        if not (app_dir / "pyproject.toml").is_file():
            raise ConfigurationError(f"no pyproject.toml in {app_dir}: give the folder of a Flower app")
        home = home.resolve()
        home.mkdir(parents=True, exist_ok=True)
        bundle, empty = scratch / "fednas", scratch / "empty"
        for folder in (bundle, empty):
            folder.mkdir()
        for name in _BUNDLED:
            source = app_dir / name
            if source.is_dir():
                shutil.copytree(source, bundle / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy2(source, bundle / name)
        port = free_port() if port is None else port
        connection: dict[str, object] = {"address": f"127.0.0.1:{port}"}
        if certificate is None:
            connection["insecure"] = True
        else:
            connection["root-certificates"] = str(certificate.resolve())
        superlink = {"default": _CONNECTION, _CONNECTION: connection}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": superlink}), encoding="utf-8")
        values = scratch / "run-config.toml"
        values.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        mark = uuid.uuid4().hex
        variables = {
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            _MARK: mark,
        }
        return cls(
            bundle=bundle,
            empty=empty,
            home=home,
            run_config=values,
            port=port,
            certificate=certificate,
            deadline=deadline,
            mark=mark,
            environment=dict(os.environ) | variables | dict(environment or {}),
        )

    @contextmanager
    def process(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """Hold one of Flower's processes, and end it and all that it started afterwards.

        Args:
            command: the name of a program of this environment, and its arguments.
            log: file that takes what it prints.
            environment: more variables for it.
        """
        with log.open("ab") as file:
            process = subprocess.Popen(
                [_executable(command[0]), *command[1:]],
                cwd=self.empty,
                env=dict(self.environment) | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait_until_healthy(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        """Wait for the SuperLink.

        Raises:
            ExchangeError: it ended, or is late.
        """
        scheme = "http" if self.certificate is None else "https"
        context = None if self.certificate is None else ssl.create_default_context(cafile=self.certificate)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        while time.monotonic() < self.deadline:
            if process.poll() is not None:
                break
            try:
                with opener.open(f"{scheme}://127.0.0.1:{self.port}/health", timeout=_POLL_S):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
        raise ExchangeError(f"the local SuperLink did not start: read {log}")

    def start_run(self, *overrides: str) -> str:
        """Start the app; its run's identity.

        Raises:
            ExchangeError: Flower did not start it, with its reason.
        """
        arguments = [*overrides, "--run-config", str(self.run_config), "--format", "json"]
        reply = self.ask(["run", str(self.bundle), _CONNECTION, *arguments])
        run_id = reply.get("run-id")
        if not run_id:
            reason = " ".join(str(reply.get("error-message", "no reason given")).split())[:200]
            raise ExchangeError(f"Flower did not start the run: {reason}")
        return str(run_id)

    def wait_for_end(self, run_id: str, process: "subprocess.Popen[bytes]") -> str:
        """Return how the run ended: `flwr run --stream` would not tell."""
        status = "pending"
        while time.monotonic() < self.deadline:
            runs = self.ask(["ls", _CONNECTION, "--run-id", run_id, "--format", "json"]).get("runs")
            if isinstance(runs, list) and runs:
                status = str(runs[0]["status"])
            if status.startswith("finished"):
                return status
            if process.poll() is not None:
                return f"without its SuperLink ({status})"
            time.sleep(_POLL_S)
        return f"unfinished at its deadline ({status})"

    def finish(self, run_id: str, process: "subprocess.Popen[bytes]", what: str) -> None:
        """Wait for a run's end and keep the server app's log, which the SuperLink forgets when it ends.

        Args:
            run_id: of the run.
            process: its SuperLink.
            what: the run, for people.

        Raises:
            ExchangeError: it failed, with the server app's own words if it had some.
        """
        status = self.wait_for_end(run_id, process)
        log = self.log(run_id)
        (self.home / "run.log").write_text(log, encoding="utf-8")
        if status != "finished:completed":
            reasons = _REASON.findall(log)
            raise ExchangeError(
                reasons[-1] if reasons else f"{what} is {status}: read {self.home / 'run.log'}"
            )

    def log(self, run_id: str) -> str:
        """What the server app of a run has printed, as far as the SuperLink knows it."""
        return self._call(["log", run_id, _CONNECTION, "--show"], _COMMAND_S)

    def register(self, public_key: Path, name: str) -> None:
        """Make a SuperNode's key known to the SuperLink; one that is known already stays so.

        Raises:
            ExchangeError: Flower refused it, with its reason.
        """
        arguments = ["supernode", "register", str(public_key), _CONNECTION, "--name", name]
        reply = self.ask([*arguments, "--format", "json"])
        reason = " ".join(str(reply.get("error-message", "no reason given")).split())[:200]
        if not reply.get("success") and "already in use" not in reason:
            raise ExchangeError(f"Flower did not register the key of {name}: {reason}")

    def ask(self, arguments: Sequence[str]) -> dict[str, object]:
        """Call Flower's command line and return the JSON it prints, or nothing when it prints none."""
        output = self._call(arguments, min(_COMMAND_S, max(1.0, self.deadline - time.monotonic())))
        try:
            return dict(json.loads(output[output.index("{") :]))
        except ValueError:
            return {}

    def _call(self, arguments: Sequence[str], patience_s: float) -> str:
        """Return what Flower's command line prints, or nothing when it takes too long."""
        try:
            done = subprocess.run(
                [_executable("flwr"), *arguments],
                cwd=self.empty,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=patience_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout

    def pids(self) -> list[int]:
        """All processes that were started here and live, with all that they started.

        Only systems with a /proc can tell; elsewhere the SuperLink itself ends what it started.
        """
        return _marked(self.mark)

    def end_all(self) -> None:
        """End what is left of all that was started here: gently first, then by force."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _GRACE_S
            while (marked := self.pids()) and time.monotonic() < end:
                for pid in marked:
                    _signal(pid, number)
                time.sleep(0.2)


def free_port() -> int:
    """A port of the loopback interface that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _executable(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _marked(mark: str) -> list[int]:
    """Return the processes that inherited this mark; daemons leave their group, not their environment."""
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
