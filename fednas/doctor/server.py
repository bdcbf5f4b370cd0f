"""The checks of a server's kit, in the order in which they stand on each other."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from fednas.doctor import files, listeners, machine, network
from fednas.doctor.endpoint import Endpoint
from fednas.doctor.findings import Checklist, Finding, fail, ok, skip
from fednas.doctor.kit import ServerKitFile
from fednas.doctor.network import Clock
from fednas.privacy.marks import parse_marks
from fednas.privacy.signing import TaskSigner

_RENEW: Final = "python -m server prepare, with the same --host, renews the certificate; then reload nginx"
_NGINX_S: Final = 20.0


def examine_server(kit: ServerKitFile, now: Clock) -> tuple[Finding, ...]:
    """Make every check of a server.

    Args:
        kit: as its kit.toml says.
        now: Unix time.
    """
    made = Checklist(kit.user)
    inner = Endpoint(host="localhost", port=kit.port, authority=kit.authority, reach="127.0.0.1")
    # From this machine the proxy is reached without the way around through the world; its name is the same.
    outer = Endpoint(host=kit.hosts[0], port=kit.public_port, authority=kit.authority, reach="127.0.0.1")
    secrets = [kit.secrets, *sorted(kit.secrets.glob("*"))]
    restore = "restore ca.crt from any site; with a new authority every site needs it anew"
    made.run("authority", lambda: files.authority(kit.authority, now(), restore))
    made.run("secrets", lambda: files.private(secrets, kit.user))
    made.run(
        "certificate",
        lambda: files.certificate(kit.certificate, kit.key, kit.authority, kit.hosts, now(), _RENEW),
        needs=["authority"],
    )
    made.run("signing key", lambda: _signing_key(kit))
    for path in kit.units:
        made.run(path.stem, lambda path=path: files.unit(path))  # type: ignore[misc]
    made.run("nginx.conf", lambda: _proxy_file(kit.proxy))
    made.run("SuperLink", lambda: network.connection(inner, now, _RENEW), needs=["certificate"])
    made.run("health", lambda: network.health(inner), needs=["SuperLink"])
    made.run("loopback only", lambda: listeners.loopback_only(kit.port), needs=["SuperLink"])
    made.run("app secret", lambda: network.runtime(inner), needs=["health"])
    made.run("proxy", lambda: network.connection(outer, now, _RENEW), needs=["certificate"])
    made.run("fleet", lambda: network.fleet(outer), needs=["proxy", "health"])
    made.run("control API", lambda: network.control(outer), needs=["proxy"])
    made.run("time service", machine.synchronised)
    made.run("versions", machine.versions)
    made.run("disk sync", lambda: machine.disk_sync(kit.runs))
    made.run("disk space", lambda: machine.disk_space(kit.runs))
    made.run("marks", lambda: _marks(kit.runs))
    return made.findings


def _proxy_file(path: Path) -> Finding:
    """Whether nginx takes the kit's allow-list."""
    bound = "nginx takes it"
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if nginx is None:
        return skip("nginx is not installed here")
    with tempfile.TemporaryDirectory(prefix="fednas-doctor-") as scratch:
        whole = Path(scratch) / "nginx.conf"
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {scratch}/{name};" for name in names)
        whole.write_text(
            f"pid {scratch}/pid; error_log stderr; events {{}}\n"
            f'http {{ access_log off; {temporary} include "{path}"; }}\n'
        )
        try:
            done = subprocess.run(
                [nginx, "-t", "-q", "-c", whole],
                capture_output=True,
                text=True,
                timeout=_NGINX_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return skip("nginx -t takes too long")
    said = [line.split("] ", 1)[-1] for line in done.stderr.splitlines() if "[emerg]" in line]
    if done.returncode == 0:
        return ok("nginx -t takes it", bound)
    if os.geteuid() != 0 and any("Permission denied" in line for line in said):
        return skip("nginx -t needs root for this port", "sudo fednas doctor")
    return fail((said or ["nginx -t refuses it"])[0][:200], bound, "prepare the kit again")


def _signing_key(kit: ServerKitFile) -> Finding:
    """Whether sites know the server by the key with which it signs."""
    bound = f"{kit.public_key.name} is of {kit.signing_key.name}"
    if kit.public_key.read_text(encoding="utf-8").strip() == TaskSigner.read(kit.signing_key).public_key:
        return ok(bound, bound)
    return fail(
        f"{kit.public_key.name} is of another key",
        bound,
        "restore the signing.key that the sites know; python -m server prepare writes server.pub anew",
    )


def _marks(runs: Path) -> Finding:
    """Whether the server remembers where it saw its sites' ledgers."""
    bound = "marks.json of every run is whole: without it an older copy of a ledger is not noticed"
    held = sorted(runs.glob("*/marks.json"))
    if not held:
        return skip("no run here has marks yet")
    for path in held:
        try:
            parse_marks(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError):
            return fail(f"{path.relative_to(runs)} is damaged", bound, "restore it from a copy")
    return ok(f"{len(held)} files of marks are whole", bound)
