"""What an operator needs beside this program: an authority, a certificate, a secret, and who runs what."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fednas.certificates import Authority, alternative, private_pem, read_key
from fednas.doctor.kit import ServerKitFile, write_kit
from fednas.errors import ConfigurationError
from fednas.operations import check_port, hand_over, unit, write_secret, write_whole
from fednas.privacy.signing import TaskSigner

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
        alternatives = [alternative(name, "--host") for name in names]
        check_port(port)
        check_port(public_port, "--public-port")
        kit = cls(folder=folder.resolve(), port=port, public_port=public_port)
        try:
            kit.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
            kit._prepare(names, alternatives)
            kit._write_services(names, user)
            hand_over(kit.folder, user)
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

    def _write_services(self, hosts: list[str], user: str) -> None:
        (self.folder / "runs").mkdir(exist_ok=True)
        units = self.units(user)
        for name, text in units.items():
            write_whole(self.folder / name, text.encode())
        write_whole(self.folder / "nginx.conf", self.proxy(hosts[0]).encode())
        described = ServerKitFile(
            user=user,
            hosts=tuple(hosts),
            port=self.port,
            public_port=self.public_port,
            authority=self.authority,
            certificate=self.folder / "server.crt",
            key=self.secrets / "server.key",
            secrets=self.secrets,
            signing_key=self.signing_key,
            public_key=self.public_key,
            runs=self.folder / "runs",
            proxy=self.folder / "nginx.conf",
            units=tuple(self.folder / name for name in units),
        )
        write_kit(described, self.folder)

    def _prepare(self, names: list[str], alternatives: list[x509.GeneralName]) -> None:
        secret = self.secrets / "superexec"
        if not secret.exists():
            write_secret(secret, secrets.token_bytes(32))
        if not self.signing_key.exists():
            write_secret(self.signing_key, secrets.token_bytes(32))
        public_key = TaskSigner.read(self.signing_key).public_key
        write_whole(self.public_key, f"{public_key}\n".encode())
        authority = Authority.open(self.authority, self.secrets / "ca.key", "fednas authority")
        key = self.secrets / "server.key"
        if not key.exists():
            write_secret(key, private_pem(ec.generate_private_key(ec.SECP384R1())))
        issued = authority.issue(
            read_key(key).public_key(), name=names[0], role="server", alternatives=alternatives
        )
        write_whole(self.folder / "server.crt", issued)
        connection = {
            "address": f"127.0.0.1:{self.port}",
            "root-certificates": str(self.authority),
        }
        document = {"superlink": {"default": "fednas", "fednas": connection}}
        write_whole(self.folder / "config.toml", tomli_w.dumps(document).encode())
