"""`fednas doctor` on a real SuperLink behind a real nginx: each fault is found by its own check alone."""

import hashlib
import json
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.kit import SiteKit
from fednas.certificates import Authority, private_pem
from fednas.config import load_site, save_study
from fednas.doctor import network
from fednas.doctor.endpoint import Endpoint
from fednas.doctor.machine import filesystem
from fednas.privacy.ledger import PrivacyLedger
from fednas.schedule import plan_for
from server.kit import ServerKit
from simulations.flower_command import FlowerCommand
from tests.cli.calls import answer, call
from tests.doctor.kits import RECORDS, STUDY, failed, found, make_data, make_site

Served = tuple[FlowerCommand, ServerKit, Path]
NETWORK = ("connection", "health", "clock", "control API", "registration")


@pytest.fixture(scope="module")
def enrolled(served: Served) -> tuple[SiteKit, str]:
    """A healthy site whose key is registered, and what the SuperLink says of its nodes."""
    flower, server, folder = served
    address = f"localhost:{server.public_port}"
    kit = make_site(folder / "enrolled", server.authority, superlink=address)
    flower.register(kit.public_key, "enrolled")
    return kit, nodes(flower)


@pytest.fixture
def kit(enrolled: tuple[SiteKit, str], tmp_path: Path, served: Served) -> SiteKit:
    """A site with the registered key, which a test may break."""
    _, server, _ = served
    made = make_site(tmp_path / "site", server.authority, superlink=f"localhost:{server.public_port}")
    for name in ("node.key", "node.pub"):
        shutil.copy(enrolled[0].folder / name, made.folder / name)
    return made


def nodes(flower: FlowerCommand) -> str:
    """Every node that the SuperLink knows, and whether it is online."""
    listed = flower.ask(["supernode", "list", "fednas", "--format", "json"])["nodes"]
    assert isinstance(listed, list)
    return json.dumps([{k: n[k] for k in ("node-id", "status")} for n in listed], sort_keys=True)


def test_a_healthy_site_is_fit_to_run_and_nothing_of_it_changes(
    enrolled: tuple[SiteKit, str],
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    kit, before = enrolled
    study = tmp_path / "study.toml"
    save_study(STUDY, study)
    files = {p: p.read_bytes() for p in kit.folder.parent.rglob("*") if p.is_file()}
    rows = answer(monkeypatch, capfd, "doctor", str(kit.folder), "--study", str(study))
    states = {row["name"]: row["state"] for row in rows}
    assert [states[name] for name in NETWORK] == ["ok"] * len(NETWORK)
    assert "fail" not in states.values()
    assert {p: p.read_bytes() for p in kit.folder.parent.rglob("*") if p.is_file()} == files
    assert nodes(served[0]) == before
    assert str(RECORDS) not in json.dumps(rows)
    capfd.readouterr()
    assert call(monkeypatch, "doctor", str(kit.folder)) == 0
    assert "fit to run" in capfd.readouterr().out


def test_a_healthy_server_is_fit_to_run(served: Served) -> None:
    _, server, _ = served
    states = {name: one.state for name, one in found(server.folder, None).items()}
    for name in ("SuperLink", "health", "loopback only", "app secret", "proxy", "fleet", "control API"):
        assert states[name] == "ok", name
    assert "fail" not in states.values()


def test_a_key_that_nobody_registered_is_unknown(tmp_path: Path, served: Served) -> None:
    _, server, _ = served
    address = f"localhost:{server.public_port}"
    stranger = make_site(tmp_path / "site", server.authority, superlink=address)
    findings = found(stranger.folder)
    assert failed(findings) == ["registration"]
    assert "does not know" in findings["registration"].seen


def test_another_authority_is_found_before_anything_is_sent(kit: SiteKit, tmp_path: Path) -> None:
    other = ServerKit.prepare(tmp_path / "other", ["localhost"])
    shutil.copy(other.authority, kit.authority)
    findings = found(kit.folder)
    assert failed(findings) == ["connection"]
    assert "not of our authority" in findings["connection"].seen
    assert {findings[name].state for name in NETWORK[1:]} == {"skip"}


def test_another_name_than_the_certificates_is_found(kit: SiteKit) -> None:
    text = (kit.folder / "kit.toml").read_text()
    (kit.folder / "kit.toml").write_text(text.replace("localhost:", "127.1.2.3:"))
    findings = found(kit.folder)
    assert failed(findings) == ["connection"]
    assert "for other names" in findings["connection"].seen


def test_a_certificate_that_expired_is_found(kit: SiteKit, served: Served, tmp_path: Path) -> None:
    _, server, _ = served
    with shown(expired(server, tmp_path), tmp_path) as port:
        point_at(kit, port)
        findings = found(kit.folder)
    assert failed(findings) == ["connection"]
    assert "expired" in findings["connection"].seen


def test_a_control_api_within_reach_is_found(kit: SiteKit, served: Served) -> None:
    point_at(kit, served[1].port)
    findings = found(kit.folder)
    assert failed(findings) == ["control API"]
    assert "/v1/control/list-runs" in findings["control API"].seen


@pytest.mark.parametrize("off", [-300.0, -70.0, 10.0, 120.0])
def test_a_clock_that_is_off_is_found(kit: SiteKit, off: float) -> None:
    findings = found(kit.folder, now=lambda: time.time() + off)
    assert failed(findings) == ["clock"]
    assert f"{abs(off):.0f} s {'ahead' if off > 0 else 'behind'}" in findings["clock"].seen


def test_flower_refuses_a_clock_that_is_as_far_ahead_as_the_bound_says(kit: SiteKit, served: Served) -> None:
    _, server, _ = served
    proxy = Endpoint(host="localhost", port=server.public_port, authority=server.authority)
    late = network.node_known(proxy, kit.key, lambda: time.time() + network.AHEAD_S + 2.0)
    assert late.state == "fail"
    assert "signature" in late.seen
    assert network.node_known(proxy, kit.key, lambda: time.time() - network.BEHIND_S).state == "ok"


def test_a_superlink_that_runs_another_flower_is_found(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server, _ = served
    inner = Endpoint(host="localhost", port=server.port, authority=server.authority)
    monkeypatch.setattr(network, "version", lambda _: "1.9.0")
    other = network.runtime(inner)
    assert other.state == "fail"
    assert "another Flower than 1.9.0" in other.seen


def test_a_proxy_that_hides_the_fleet_is_found(served: Served) -> None:
    """The SuperLink's own answer to nobody is 401; anything else did not come from it."""
    _, server, _ = served
    proxy = Endpoint(host="localhost", port=server.public_port, authority=server.authority)
    assert network.runtime(proxy).state == "fail"
    assert network.fleet(proxy).state == "ok"


def test_a_key_that_others_may_read_is_found(kit: SiteKit) -> None:
    kit.key.chmod(0o644)
    findings = found(kit.folder)
    assert failed(findings) == ["secrets"]
    assert "mode 644" in findings["secrets"].seen


def test_a_public_key_of_another_key_is_found(kit: SiteKit, tmp_path: Path, served: Served) -> None:
    other = make_site(tmp_path / "other", served[1].authority)
    shutil.copy(other.public_key, kit.public_key)
    assert failed(found(kit.folder)) == ["node key"]


def test_data_that_do_not_fit_the_study_are_found_and_not_told(kit: SiteKit) -> None:
    make_data(kit.site.with_name("data.npz"), features=5)
    findings = found(kit.folder)
    assert failed(findings) == ["data"]
    assert "expected x of shape (records, 4)" in findings["data"].seen
    assert str(RECORDS) not in findings["data"].seen


def test_a_budget_that_the_study_exceeds_is_found_and_not_charged(kit: SiteKit) -> None:
    config = load_site(kit.site)
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        ledger.open_plan("earlier", plan_for(STUDY, 3, STUDY.privacy.budget))
    before = digest(config.ledger)
    findings = found(kit.folder)
    assert failed(findings) == ["budget"]
    assert "would exceed the cap 3" in findings["budget"].seen
    assert digest(config.ledger) == before
    assert failed(found(kit.folder, None)) == []


def test_a_ledger_that_was_changed_is_found(kit: SiteKit) -> None:
    config = load_site(kit.site)
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        head = ledger.head
    content = config.ledger.read_bytes()
    config.ledger.write_bytes(content.replace(head.encode(), b"0" * 64))
    findings = found(kit.folder)
    assert failed(findings) == ["ledger"]
    assert findings["budget"].state == "skip"


def test_a_ledger_that_its_disk_will_forget_is_found(kit: SiteKit) -> None:
    memory = Path("/dev/shm")
    if filesystem(memory) != "tmpfs" or not os.access(memory, os.W_OK):
        pytest.skip("there is no tmpfs here")
    with tempfile.TemporaryDirectory(dir=memory, prefix="fednas-test-") as folder:
        text = kit.site.read_text()
        kit.site.write_text(text.replace('"ledger.sqlite"', f'"{folder}/ledger.sqlite"'))
        findings = found(kit.folder)
    assert failed(findings) == ["disk sync"]
    assert "tmpfs, which forgets" in findings["disk sync"].seen


def test_a_server_whose_certificate_lacks_a_name_is_found(served: Served, tmp_path: Path) -> None:
    _, server, _ = served
    copy = Path(shutil.copytree(server.folder, tmp_path / "kit"))
    text = (copy / "kit.toml").read_text()
    (copy / "kit.toml").write_text(text.replace("hosts = [\n", 'hosts = [\n    "fl.example.org",\n'))
    findings = found(copy, None)
    assert failed(findings) == ["certificate"]
    assert "fl.example.org" in findings["certificate"].seen


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def point_at(kit: SiteKit, port: int) -> None:
    """Let a kit take another port of this machine for the server's."""
    text = (kit.folder / "kit.toml").read_text()
    (kit.folder / "kit.toml").write_text(text.replace(kit.superlink, f"localhost:{port}"))


def expired(server: ServerKit, folder: Path) -> bytes:
    """A certificate of the server's authority that ended an hour ago; its key is expired.key."""
    authority = Authority.open(server.authority, server.secrets / "ca.key", "fednas authority")
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    (folder / "expired.key").write_bytes(private_pem(key))
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(authority.key, hashes.SHA384())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@contextmanager
def shown(certificate: bytes, folder: Path) -> Iterator[int]:
    """A port at which one handshake is answered with a certificate."""
    (folder / "expired.crt").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "expired.crt", folder / "expired.key")

    def greet(listening: socket.socket) -> None:
        with listening, listening.accept()[0] as plain:
            try:
                context.wrap_socket(plain, server_side=True).close()
            except OSError:
                return

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    greeter = threading.Thread(target=greet, args=(listening,), daemon=True)
    greeter.start()
    yield port
    greeter.join(10.0)
