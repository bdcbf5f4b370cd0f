"""A network of this machine alone: each device in a namespace of its own, on a wire that can be cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.kit import ServerKit

_NETWORK = "198.18.{0}.{1}"  # of RFC 2544: for tests, routed nowhere


class NoNamespacesError(Exception):
    """This machine, or this user, cannot make network namespaces."""


@dataclass(frozen=True, kw_only=True)
class Wires:
    """A bridge of the host, and a wire from it to each device.

    Args:
        number: of the network, 0 to 255.
        devices: how many.
    """

    number: int
    devices: int

    @property
    def address(self) -> str:
        """At which the devices reach the host."""
        return _NETWORK.format(self.number, 1)

    def prefix(self, device: int) -> tuple[str, ...]:
        """What comes before a command that is to run on a device."""
        return (_ip(), "netns", "exec", self._namespace(device))

    def cut(self, device: int) -> None:
        """Take a device off the network: what is under way is lost, and nobody is told."""
        _call("link", "set", self._wire(device), "down")

    def mend(self, device: int) -> None:
        """Put it back."""
        _call("link", "set", self._wire(device), "up")

    @classmethod
    @contextmanager
    def strung(cls, devices: int) -> Iterator["Wires"]:
        """Make the network, and take it away whatever happens; its names carry the number of this process.

        Raises:
            NoNamespacesError: it cannot be made here.
        """
        if os.geteuid() != 0 or shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            raise NoNamespacesError("network namespaces need root and the command ip")
        wires = cls(number=os.getpid() % 256, devices=devices)
        with ExitStack() as stack:
            try:
                wires._string(stack)
            except subprocess.CalledProcessError as error:
                raise NoNamespacesError(f"no network namespaces here: {error.stderr.strip()}") from error
            yield wires

    def _string(self, stack: ExitStack) -> None:
        bridge = f"fnb{os.getpid()}"
        _call("link", "add", bridge, "type", "bridge")
        stack.callback(_call, "link", "del", bridge)
        _call("addr", "add", f"{self.address}/24", "dev", bridge)
        _call("link", "set", bridge, "up")
        for device in range(self.devices):
            namespace, wire, inside = self._namespace(device), self._wire(device), "eth0"
            _call("netns", "add", namespace)
            stack.callback(_call, "netns", "del", namespace)  # the wire goes with it
            _call("link", "add", wire, "type", "veth", "peer", "name", inside, "netns", namespace)
            _call("link", "set", wire, "master", bridge)
            _call("link", "set", wire, "up")
            within = ("-n", namespace)
            _call(*within, "addr", "add", f"{_NETWORK.format(self.number, 2 + device)}/24", "dev", inside)
            _call(*within, "link", "set", inside, "up")
            _call(*within, "link", "set", "lo", "up")

    def _namespace(self, device: int) -> str:
        return f"fednas-{os.getpid()}-{device}"

    def _wire(self, device: int) -> str:
        return f"fnw{os.getpid()}-{device}"


def _ip() -> str:
    found = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found is not None, "looked for when the network was made"
    return found


def _call(*arguments: str) -> None:
    subprocess.run([_ip(), *arguments], check=True, capture_output=True, text=True)


@contextmanager
def proxy(kit: ServerKit, folder: Path) -> Iterator[None]:
    """The nginx of a server's kit, which listens at its public port; killed and started it is not.

    Args:
        kit: of the server.
        folder: for nginx's own files; made.
    """
    folder.mkdir(parents=True)
    paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in paths)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; user root; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {kit.folder}/nginx.conf; }}\n"
    )
    process = subprocess.Popen([nginx() or "nginx", "-c", str(config)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def nginx() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
