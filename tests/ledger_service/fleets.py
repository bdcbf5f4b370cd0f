"""Sites that serve ledgers on this machine, and the certificates that they and an auditor have."""

import datetime
import ipaddress
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fednas.ledger_service.client import Identity
from fednas.ledger_service.server import serve
from fednas.privacy.ledger import PrivacyLedger
from tests.privacy.ledgers import CAP, SMALL, noise, operation


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder: `ca.pem`, and NAME.pem with NAME.key of each certificate."""

    folder: Path
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        folder.mkdir()
        authority = cls(folder, ec.generate_private_key(ec.SECP256R1()))
        authority._write("ca", authority.key, is_ca=True)
        return authority

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for this machine's loopback address, and its key."""
        self._write(name, ec.generate_private_key(ec.SECP256R1()), is_ca=False)
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def identity(self, trusting: Path | None = None) -> Identity:
        certificate, key = self.issue("auditor")
        return Identity.read(certificate=certificate, key=key, ca=trusting or self.ca)

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, *, is_ca: bool) -> None:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.folder.name)])
        subject = authority if is_ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        loopback = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(loopback), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (self.folder / f"{name}.key").write_bytes(secret)


@contextmanager
def serving(ledger: Path, authority: Authority) -> Iterator[str]:
    """The address at which a site shows its ledger."""
    certificate, key = authority.issue("site")
    server, port = serve(
        ledger=ledger,
        address="127.0.0.1:0",
        certificate=certificate,
        key=key,
        client_ca=authority.ca,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def make_ledger(path: Path, dataset: str = "ward", *, releases: int = 3) -> Path:
    """A small ledger; longer by `releases` each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with PrivacyLedger.open(path, dataset=dataset, cap=CAP) as ledger:
        ledger.open_plan("run", SMALL)
        begin = len(_released(path))
        for number in range(begin, begin + releases):
            ledger.release(operation(number), charges={"search": 1}, mechanism=noise)
    return path


def _released(path: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT seq FROM entries WHERE kind = 'RELEASE'").fetchall()
    finally:
        connection.close()


def channel(address: str, identity: Identity) -> Any:
    credentials = grpc.ssl_channel_credentials(identity.ca, identity.key, identity.certificate)
    return grpc.secure_channel(address, credentials)


def kept(out: Path) -> dict[str, Any]:
    """The marks that a pull left."""
    marks: dict[str, Any] = json.loads((out / "marks.json").read_text())["datasets"]
    return marks
