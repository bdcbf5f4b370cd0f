"""What an operator needs beside this program: an authority, a certificate, a secret, and who runs what."""

import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fednas.errors import ConfigurationError
from fednas.operations import check_port, unit, write_secret, write_whole
from fednas.privacy.signing import TaskSigner

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
SUPERLINK_UNIT: Final = "fednas-superlink.service"
SUPEREXEC_UNIT: Final = "fednas-superexec.service"
PROXY: Final = """\
# Devices reach the SuperLink through this server, and only its fleet. Whoever reaches the paths that are left
# out can start runs, which are code on every device: Flower does not ask who they are.
# Include it in the http block of nginx.
server {{
    listen {public_port} ssl;
    server_name {host};
    ssl_certificate "{certificate}";
    ssl_certificate_key "{key}";
    ssl_protocols TLSv1.3;
    server_tokens off;
    client_max_body_size 64m;
    proxy_read_timeout 120s;
    proxy_ssl_name localhost;
    proxy_ssl_server_name on;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate "{authority}";

    # The path as it was sent: it is passed on as it is, so nothing in it may mean another one.
    if ($request_uri !~ "^/(v1/fleet/[a-z-]+|health)$") {{
        return 404;
    }}
    location ^~ /v1/fleet/ {{
        proxy_pass https://127.0.0.1:{port};
        proxy_http_version 1.1;
        proxy_set_header Host localhost;
        proxy_request_buffering off;
        proxy_buffering off;
    }}
    location = /health {{
        proxy_pass https://127.0.0.1:{port};
    }}
    location / {{
        return 404;
    }}
}}
"""
_AUTHORITY_DAYS: Final = 3650
_CERTIFICATE_DAYS: Final = 397  # the longest that common verifiers take
_SKEW: Final = timedelta(hours=1)  # a device without a clock battery may be behind


@dataclass(frozen=True, kw_only=True)
class ServerKit:
    """The files of one server: all below one folder, whose secrets only its owner reads.

    Args:
        folder: of the kit, absolute.
        port: of the SuperLink on the loopback interface; devices reach it through a reverse proxy.
        public_port: at which the reverse proxy listens for devices.
    """

    folder: Path
    port: int = 9092
    public_port: int = 443

    @classmethod
    def prepare(
        cls,
        folder: Path,
        hosts: Iterable[str],
        *,
        port: int = 9092,
        public_port: int = 443,
        user: str = "fednas",
    ) -> Self:
        """Make keys and certificates; what is there is kept, so that devices go on trusting it.

        Args:
            folder: made when missing.
            hosts: DNS names and IP addresses by which devices reach the server; loopback is always added.
            port: 1 to 65535.
            public_port: likewise.
            user: under whom systemd runs the server.

        Raises:
            ConfigurationError: a host or the port is malformed, or the folder cannot be written.

        Guarantees:
            - Secrets are never readable by others, not even while they are written.
            - No secret is ever overwritten.
        """
        names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"]))
        alternatives = [_alternative(name) for name in names]
        check_port(port)
        check_port(public_port, "--public-port")
        kit = cls(folder=folder.resolve(), port=port, public_port=public_port)
        try:
            kit.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
            kit._prepare(names, alternatives)
            kit._write_services(names[0], user)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {folder}: {error.strerror}; choose another folder"
            ) from error
        return kit

    @property
    def secrets(self) -> Path:
        """Folder of what nobody else may read."""
        return self.folder / "secrets"

    @property
    def authority(self) -> Path:
        """Certificate of the authority: what every device gets, and nothing secret."""
        return self.folder / "ca.crt"

    @property
    def signing_key(self) -> Path:
        """With this the server signs what it asks of its sites."""
        return self.secrets / "signing.key"

    @property
    def public_key(self) -> Path:
        """The text that every `site.toml` has as its `server_key`; nothing secret."""
        return self.folder / "server.pub"

    @property
    def superlink(self) -> tuple[str, ...]:
        """The command that runs the SuperLink: TLS, known nodes only, apps in processes of their own."""
        return (
            "flower-superlink",
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.secrets / "superexec")),
            *("--ssl-ca-certfile", str(self.authority)),
            *("--ssl-certfile", str(self.folder / "server.crt")),
            *("--ssl-keyfile", str(self.secrets / "server.key")),
            "--enable-supernode-auth",
            *("--database", str(self.folder / "superlink.db")),
            "--disable-runtime-dependency-installation",
        )

    @property
    def superexec(self) -> tuple[str, ...]:
        """The command that runs server apps, beside the SuperLink and apart from it."""
        return (
            "flower-superexec",
            *("--runtime-api-address", f"127.0.0.1:{self.port}"),
            *("--root-certificates", str(self.authority)),
            *("--superexec-auth-secret-file", str(self.secrets / "superexec")),
        )

    def units(self, user: str) -> Mapping[str, str]:
        """The systemd units of the server, by file name."""
        home = {"FLWR_HOME": str(self.folder / "flower")}
        runs = self.folder / "runs"
        return {
            SUPERLINK_UNIT: unit(
                "fednas server (Flower SuperLink)",
                self.superlink,
                user=user,
                folders=(self.folder,),
                environment=home,
            ),
            SUPEREXEC_UNIT: unit(
                "fednas server apps (Flower SuperExec)",
                self.superexec,
                user=user,
                folders=(self.folder, runs),
                after=(SUPERLINK_UNIT,),
                environment=home,
            ),
        }

    def proxy(self, host: str) -> str:
        """What nginx lets through from outside: the paths of the fleet, and nothing that starts a run."""
        return PROXY.format(
            host=host,
            port=self.port,
            public_port=self.public_port,
            authority=self.authority,
            certificate=self.folder / "server.crt",
            key=self.secrets / "server.key",
        )

    def _write_services(self, host: str, user: str) -> None:
        (self.folder / "runs").mkdir(exist_ok=True)
        for name, text in self.units(user).items():
            write_whole(self.folder / name, text.encode())
        write_whole(self.folder / "nginx.conf", self.proxy(host).encode())

    def _prepare(self, names: list[str], alternatives: list[x509.GeneralName]) -> None:
        secret = self.secrets / "superexec"
        if not secret.exists():
            write_secret(secret, secrets.token_bytes(32))
        if not self.signing_key.exists():
            write_secret(self.signing_key, secrets.token_bytes(32))
        public_key = TaskSigner.read(self.signing_key).public_key
        write_whole(self.public_key, f"{public_key}\n".encode())
        authority = self._authority()
        key, certificate = self.secrets / "server.key", self.folder / "server.crt"
        if not key.exists():
            write_secret(key, _pem(ec.generate_private_key(ec.SECP384R1())))
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        issued = (
            _builder(names[0], private.public_key(), _CERTIFICATE_DAYS, authority[1].subject)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority[0].public_key()), critical=False
            )
            .sign(authority[0], hashes.SHA384())
        )
        write_whole(certificate, issued.public_bytes(serialization.Encoding.PEM))
        connection = {
            "address": f"127.0.0.1:{self.port}",
            "root-certificates": str(self.authority),
        }
        document = {"superlink": {"default": "fednas", "fednas": connection}}
        write_whole(self.folder / "config.toml", tomli_w.dumps(document).encode())

    def _authority(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key, certificate = self.secrets / "ca.key", self.authority
        if key.exists() != certificate.exists():
            raise ConfigurationError(
                f"{key} and {certificate} belong together, one is missing: restore it or take another folder"
            )
        if not key.exists():
            private = ec.generate_private_key(ec.SECP384R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fednas authority")])
            made = (
                _builder("fednas authority", private.public_key(), _AUTHORITY_DAYS, name)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(sign=True), critical=True)
                .add_extension(
                    x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False
                )
                .sign(private, hashes.SHA384())
            )
            write_secret(key, _pem(private))
            write_whole(certificate, made.public_bytes(serialization.Encoding.PEM))
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return loaded, x509.load_pem_x509_certificate(certificate.read_bytes())


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"expected a DNS name or an IP address after --host, got {host!r:.80}")
    return x509.DNSName(host)


def _builder(
    name: str, public_key: ec.EllipticCurvePublicKey, days: int, issuer: x509.Name
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    parts: Mapping[str, bool] = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, **parts)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
