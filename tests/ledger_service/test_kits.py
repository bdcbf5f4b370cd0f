"""From kits to a pulled ledger: keys that nobody moves, requests that an operator signs, mutual TLS."""

import json
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typer.testing import CliRunner

from client.kit import SiteKit
from fednas.certificates import private_pem, read_certificate, read_request, request_certificate
from fednas.config import load_site
from fednas.doctor.endpoint import Endpoint
from fednas.doctor.kit import SiteKitFile, read_kit
from fednas.doctor.ledger_service import stranger
from fednas.errors import ConfigurationError
from fednas.ledger_service import client
from fednas.ledger_service.client import Identity
from fednas.privacy.ledger import PrivacyLedger
from server.__main__ import cli
from server.issue import issue_to_auditor, issue_to_site
from server.kit import ServerKit
from simulations.flower_command import free_port
from tests.cli.calls import answer, call
from tests.doctor.kits import OWNER, failed, found, make_site
from tests.privacy.ledgers import noise, operation, plan_of, search_event

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerKit:
    """An operator's kit."""
    return ServerKit.prepare(tmp_path_factory.mktemp("server"), ["fl.example.org"], user=OWNER)


@pytest.fixture
def site(tmp_path: Path, server: ServerKit) -> SiteKit:
    """A site whose ledger is there, and whose service was certified."""
    kit = make_site(tmp_path / "site", server.authority, ledger=f"localhost:{free_port()}")
    config = load_site(kit.site)
    with PrivacyLedger.open(config.ledger, dataset=config.dataset, cap=config.cap) as ledger:
        ledger.open_plan("run", plan_of(search=search_event(20)))
        ledger.release(operation(1), charges={"search": 1}, mechanism=noise)
    issued = issue_to_site(server.folder, kit.folder / "ledger.csr", ["localhost"])
    shutil.copy(issued.certificate, kit.folder / "ledger.crt")
    shutil.copy(issued.authority, kit.folder / "auditors.crt")
    return kit


@contextmanager
def running(kit: SiteKit) -> Iterator[None]:
    """The site's ledger service, as its unit starts it."""
    _, *words = kit.ledger_service
    command = [sys.executable, "-m", "fednas.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving ")
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


def auditing(folder: Path, server: ServerKit, name: str = "eve") -> Identity:
    """An auditor whom the operator knows."""
    request_certificate(folder / f"{name}.key", folder / f"{name}.csr", name=name)
    issued = issue_to_auditor(server.folder, folder / f"{name}.csr", name)
    return Identity.read(certificate=issued.certificate, key=folder / f"{name}.key", ca=issued.authority)


def reached(address: str, identity: Identity) -> bool:
    """Whether a site answers somebody."""
    with client.Client(address, identity, client.Limits()) as asked:
        try:
            return bool(asked.head().head)
        except client.PullError:
            return False


def test_an_auditor_pulls_what_a_site_serves_with_what_the_operator_issued(
    site: SiteKit,
    server: ServerKit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every step as it is typed: request, issue, serve, pull; and the doctor finds the site in order."""
    made = answer(monkeypatch, capfd, "ledger", "request", "eve", "--out", str(tmp_path / "eve"))
    assert stat.S_IMODE(Path(made["key"]).stat().st_mode) == 0o600
    words = ["issue", str(server.folder), made["request"], "--auditor", "eve", "--json"]
    issued = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    options = ("--certificate", issued["certificate"], "--key", made["key"], "--ca", issued["authority"])
    assert site.ledger is not None
    with running(site):
        out = str(tmp_path / "out")
        (row,) = answer(monkeypatch, capfd, "ledger", "pull", site.ledger, *options, "--out", out)
        findings = found(site.folder, None)
    assert (row["verdict"], row["dataset"]) == ("holds", load_site(site.site).dataset)
    assert findings["ledger certificate"].state == "ok"
    assert findings["ledger strangers"].seen == "it refuses who has no certificate"
    assert findings["ledger port"].seen.startswith("the service runs")
    assert failed(findings) == ["connection"]  # no server runs here


def test_a_certificate_is_good_for_one_role(site: SiteKit, server: ServerKit, tmp_path: Path) -> None:
    """A site is no auditor of another, the server's own certificate is neither, nor is an outsider's."""
    folder = tmp_path
    auditors = server.folder / "auditors.crt"
    as_site = Identity.read(
        certificate=site.folder / "ledger.crt", key=site.folder / "ledger.key", ca=auditors
    )
    as_server = Identity.read(
        certificate=server.folder / "server.crt", key=server.secrets / "server.key", ca=auditors
    )
    own = Identity.read(
        certificate=server.folder / "server.crt", key=server.secrets / "server.key", ca=server.authority
    )
    assert site.ledger is not None
    with running(site):
        assert reached(site.ledger, auditing(folder, server))
        assert not reached(site.ledger, as_site)
        assert not reached(site.ledger, as_server)
        assert not reached(site.ledger, own)


def test_no_device_takes_what_is_issued_for_its_server(site: SiteKit, server: ServerKit) -> None:
    """Even for the server's own name: devices trust another authority."""
    assert site.ledger is not None
    port = int(site.ledger.rpartition(":")[2])
    with running(site):
        by_auditors = Endpoint(host="localhost", port=port, authority=server.folder / "auditors.crt")
        by_auditors.connect().close()
        as_a_device = Endpoint(host="localhost", port=port, authority=site.authority)
        with pytest.raises(ssl.SSLCertVerificationError):
            as_a_device.connect()
    assert read_certificate(server.folder / "auditors.crt") != read_certificate(server.authority)
    assert stat.S_IMODE((server.secrets / "auditors.key").stat().st_mode) == 0o600


def test_the_keys_stay_and_a_second_preparation_asks_with_the_same(site: SiteKit, server: ServerKit) -> None:
    key = site.folder / "ledger.key"
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = SiteKit.prepare(
        site.folder,
        site.site,
        superlink="localhost:1",
        authority=site.authority,
        user=OWNER,
        ledger="ledger.example.org:443",
    )
    assert key.read_bytes() == before
    public, names = read_request(site.folder / "ledger.csr")
    assert names == {x509.DNSName("ledger.example.org")}
    assert public == read_certificate(site.folder / "ledger.crt").public_key()
    assert '"[::]:443"' in (site.folder / "fednas-ledger.service").read_text()
    assert "ledger.example.org" in found(again.folder, None)["ledger certificate"].seen


def test_an_issued_certificate_is_for_what_the_operator_typed(site: SiteKit, server: ServerKit) -> None:
    request = site.folder / "ledger.csr"
    with pytest.raises(ConfigurationError, match=r"asks for localhost, not for fl\.example\.org"):
        issue_to_site(server.folder, request, ["fl.example.org"])
    with pytest.raises(ConfigurationError, match="--site"):
        issue_to_site(server.folder, request, ["a b"])
    with pytest.raises(ConfigurationError, match="--auditor"):
        issue_to_auditor(server.folder, request, "../x")
    with pytest.raises(ConfigurationError, match="no server's kit"):
        issue_to_site(site.folder, request, ["localhost"])
    # An auditor's certificate has no names, whatever was asked for: it cannot serve.
    issued = read_certificate(issue_to_auditor(server.folder, request, "eve").certificate)
    with pytest.raises(x509.ExtensionNotFound):
        issued.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    purposes = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_that_is_none_is_refused(server: ServerKit, tmp_path: Path) -> None:
    """Neither another file, nor one whose owner does not have the key, nor a key of another kind."""
    path = tmp_path / "x.csr"
    for content, word in (
        (None, "cannot read"),
        (private_pem(ec.generate_private_key(ec.SECP384R1())), "no certificate request"),
        (signed(rsa.generate_private_key(65537, 2048)), "neither P-256 nor P-384"),
        (stolen(), "not signed by its own key"),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=word):
            issue_to_auditor(server.folder, path, "eve")


def test_a_mistake_is_one_line(
    server: ServerKit,
    site: SiteKit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "ledger", "request", "Eve Q", "--out", str(tmp_path)) == 2
    assert call(monkeypatch, "ledger", "request", "eve", "--out", "/dev/null/x") == 2
    assert capfd.readouterr().err.count("\n") == 2
    for words in ([], ["--site", "localhost", "--auditor", "eve"]):
        done = CliRunner().invoke(cli, ["issue", str(server.folder), str(site.folder / "ledger.csr"), *words])
        assert isinstance(done.exception, ConfigurationError)
        assert str(done.exception).startswith("give --site HOST or --auditor NAME: ")


def test_a_service_that_answers_anybody_is_found(site: SiteKit) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.folder / "ledger.crt", site.folder / "ledger.key")
    kit = read_kit(site.folder)
    assert isinstance(kit, SiteKitFile)
    assert kit.ledger is not None

    def answer_all(listening: socket.socket) -> None:
        with listening, listening.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as held:
            held.recv(1)
            held.sendall(b"welcome")

    port = int(kit.ledger.address.rpartition(":")[2])
    listening = socket.create_server(("127.0.0.1", port))
    greeter = threading.Thread(target=answer_all, args=(listening,), daemon=True)
    greeter.start()
    finding = stranger(kit.ledger)
    greeter.join(10.0)
    assert (finding.state, finding.seen) == ("fail", "it answers anybody")


def signed(key: rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def stolen() -> bytes:
    """A request for somebody else's key: its last byte, of the signature, is another."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    content = made.public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(content[:-1] + bytes([content[-1] ^ 1]))
    return forged.public_bytes(serialization.Encoding.PEM)
