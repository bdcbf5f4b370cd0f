"""What operators and sites start programs by: secrets, files that are whole, addresses, systemd units."""

import ipaddress
import os
import pwd
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fednas.errors import ConfigurationError
from fednas.logs import VARIABLE

_RESTART_S: Final = 15  # a SuperNode that was killed may come back after its lease of 60 s
QUIET: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    VARIABLE: "text",
}
"""Variables of every unit: Flower calls nobody and installs nothing, and a process has one thread."""

_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_][A-Za-z0-9._-]{0,252}):([0-9]{1,5})")
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner reads, from its first byte on.

    Raises:
        FileExistsError: it is there; a secret is never overwritten.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that anybody may read, durably: it is there whole or as it was, whatever happens."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def hand_over(folder: Path, user: str) -> None:
    """Give a folder that root made, and all in it, to the user whose services read it.

    Whoever else prepares one does it as that user. A user that is not there yet gets nothing.

    Args:
        folder: of a kit.
        user: by name.

    Raises:
        OSError: the disk refuses.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = pwd.getpwnam(user)
    except KeyError:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def program(name: str) -> str:
    """The absolute path of a program that was installed beside this library."""
    return str(Path(sys.executable).parent / name)


def check_port(port: int, option: str = "--port") -> None:
    """Check a port.

    Raises:
        ConfigurationError: it is none.
    """
    if not 1 <= port <= 65535:
        raise ConfigurationError(f"expected a port from 1 to 65535 after {option}, got {port}")


def parse_address(text: str, option: str, *, least_port: int = 1) -> tuple[str, int]:
    """Take an address apart: the one form of HOST:PORT that everything here takes.

    Args:
        text: HOST:PORT; an IPv6 address stands in brackets.
        option: what an error calls it.
        least_port: 0 where the system may choose one.

    Returns:
        The host, without brackets, and the port.

    Raises:
        ConfigurationError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    host = found[1].strip("[]") if found else ""
    if found is None or not least_port <= int(found[2]) <= 65535 or not _is_host(host, found[1]):
        raise ConfigurationError(f"expected HOST:PORT after {option}, got {text!r:.80}")
    return host, int(found[2])


def join_address(host: str, port: int) -> str:
    """The text that `parse_address` takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which nobody else reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str, written: str) -> bool:
    if not written.startswith("["):
        return True
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def free_memory_bytes(*, meminfo: Path = _MEMINFO, cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Return the memory that is free now, within the limit of this process's container.

    Args:
        meminfo: the kernel's table of memory.
        cgroup_limit: the file that holds the container's limit.

    Returns:
        Bytes.

    Raises:
        ConfigurationError: the system does not tell.
    """
    limits: list[int] = []
    if meminfo.is_file():
        table = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        limits += [int(table["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in table else []
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if limits and cgroup_limit.is_file():
        text = cgroup_limit.read_text().strip()
        limits += [int(text)] if text.isdigit() else []  # "max" is no limit
    if not limits:
        raise ConfigurationError("this system does not tell its free memory; state memory_bytes")
    return min(limits)


def unit(
    description: str,
    command: Sequence[str],
    *,
    user: str,
    folders: Sequence[Path],
    after: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> str:
    """A systemd unit that keeps a program running, and lets it write nowhere but in its folders.

    Args:
        description: for people.
        command: the name of a program of this environment, and its arguments.
        user: under whom it runs.
        folders: which it may write, absolute.
        after: other units that it follows.
        environment: more variables.

    Raises:
        ConfigurationError: a path holds a line break, which no unit can.
    """
    # Flower starts its other programs by their names, and systemd's own path holds no virtual environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    variables = dict(QUIET) | {"PATH": path} | dict(environment or {})
    lines = [
        "[Unit]",
        f"Description={description}",
        # Certificates have dates: a clock that is not set yet refuses them all.
        f"After={' '.join(('network-online.target', 'time-sync.target', *after))}",
        "Wants=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"User={user}",
        f"ExecStart={' '.join(_argument(part) for part in (program(command[0]), *command[1:]))}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in variables.items()),
        "Restart=always",
        f"RestartSec={_RESTART_S}",
        "UMask=0077",
        "NoNewPrivileges=yes",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "RestrictSUIDSGID=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "LockPersonality=yes",
        f"ReadWritePaths={' '.join(_quoted(str(folder)) for folder in folders)}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    if any("\n" in line or "\r" in line for line in lines):
        raise ConfigurationError("a path holds a line break; choose another folder")
    return "\n".join(lines) + "\n"


def _argument(text: str) -> str:
    """A word of a command, in which no variable is put in."""
    return _quoted(text.replace("$", "$$"))


def _quoted(text: str) -> str:
    """A word of a unit, in quotes, in which no specifier is put in."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
