"""Who listens at a port of this machine, as the kernel says it."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fednas.doctor.findings import Finding, fail, ok, skip, warn

_LISTEN: Final = "0A"


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A socket that waits for connections.

    Args:
        address: of this machine; `0.0.0.0` and `::` are all of them.
        command: of the process, as its words; empty where another user's is not told.
    """

    address: str
    command: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine reaches it."""
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback


def listeners(port: int, proc: Path = Path("/proc")) -> list[Listener] | None:
    """Those who listen at a port; None where the system does not tell.

    Args:
        port: of TCP.
        proc: where the kernel tells of processes and sockets.
    """
    tables = [proc / "net" / name for name in ("tcp", "tcp6")]
    if not tables[0].is_file():
        return None
    found: dict[str, str] = {}  # inode -> address
    for table in tables:
        for line in table.read_text().splitlines()[1:] if table.is_file() else []:
            fields = line.split()
            address, _, number = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(number, 16) == port:
                found[fields[9]] = _address(address)
    commands = dict(_owners(set(found), proc)) if found else {}
    return [Listener(address=address, command=commands.get(inode, ())) for inode, address in found.items()]


def _address(text: str) -> str:
    """The kernel writes addresses as words of this machine's byte order, in hexadecimal digits."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _owners(inodes: set[str], proc: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for folder in proc.glob("[0-9]*/fd"):
        try:
            links = list(folder.iterdir())
            words = (folder.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:  # of another user, or gone
            continue
        for link in links:
            with suppress(OSError):  # closed meanwhile
                inode = wanted.get(os.readlink(link))
                if inode is not None:
                    yield inode, tuple(word.decode(errors="replace") for word in words if word)


def own_port(port: int, mark: str) -> Finding:
    """Whether a port is free, or used by the service that it is for.

    Args:
        port: of TCP.
        mark: a word that the service's command holds, and no other's.
    """
    bound = f"port {port} is free, or used by this kit's service"
    found = listeners(port)
    if found is None:
        return skip("this system does not tell who listens")
    if not found:
        return ok(f"port {port} is free: the service does not run", bound)
    if any(any(mark in word for word in one.command) for one in found):
        return ok(f"the service runs at port {port}", bound)
    if any(not one.command for one in found):
        return warn(
            f"port {port} is used by a process of another user", bound, "run this as root to see whose it is"
        )
    other = Path(found[0].command[0]).name
    return fail(f"port {port} is used by {other}", bound, "end it, or prepare the kit with another --port")


def loopback_only(port: int) -> Finding:
    """Whether what listens at a port is reached from this machine alone."""
    bound = f"port {port} listens on the loopback interface only"
    found = listeners(port)
    if found is None:
        return skip("this system does not tell who listens")
    open_ = sorted({one.address for one in found if not one.is_local})
    if open_:
        return fail(
            f"port {port} listens on {', '.join(open_)}",
            bound,
            "start it by the kit's unit: --host 127.0.0.1; whoever reaches it runs code on every device",
        )
    return ok(f"port {port} listens on {', '.join(sorted({one.address for one in found}))}", bound)
