"""Who listens at a port, as the kernel says it: real sockets of this machine."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fednas.doctor.listeners import Listener, listeners, loopback_only, own_port
from simulations.flower_command import free_port

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="the system does not tell")


def test_a_free_port_has_no_listener() -> None:
    port = free_port()
    assert listeners(port) == []
    assert own_port(port, "node.key").state == "ok"


@pytest.mark.parametrize(
    ("address", "local"), [("127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::1", True)]
)
def test_the_address_and_the_process_of_a_listener_are_found(address: str, local: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        held = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with held:
        port = held.getsockname()[1]
        (one,) = listeners(port) or []
        assert (one.address, one.is_local) == (address, local)
        assert one.command[0].endswith(Path(sys.executable).name) or "python" in one.command[0]
        assert loopback_only(port).state == ("ok" if local else "fail")


def test_an_address_of_both_families_is_everybodys() -> None:
    assert not Listener(address="::", command=()).is_local
    assert Listener(address="::ffff:127.0.0.1", command=()).is_local


def test_a_port_is_used_by_our_service_or_by_another(tmp_path: Path) -> None:
    code = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    key = str(tmp_path / "node.key")
    with subprocess.Popen(
        [sys.executable, "-c", code, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        port = int(service.stdout.readline())
        ours, other = own_port(port, key), own_port(port, str(tmp_path / "other.key"))
        service.communicate()
    assert (ours.state, other.state) == ("ok", "fail")
    assert "python" in other.seen


def test_a_process_that_may_not_be_seen_is_no_fault(tmp_path: Path) -> None:
    """As another user's looks to one without rights: its socket is told, its process is not."""
    (tmp_path / "net").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        (tmp_path / "net" / "tcp").write_text(Path("/proc/net/tcp").read_text())
    (one,) = listeners(port, tmp_path) or []
    assert one.command == ()
    assert listeners(port, tmp_path / "nothing") is None
