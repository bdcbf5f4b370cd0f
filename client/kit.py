"""What a site needs beside this program: a key by which the server knows its device, and what it runs."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednas.config import SiteConfig, load_site
from fednas.errors import ConfigurationError
from fednas.operations import check_port, unit, write_secret, write_whole

UNIT: Final = "fednas-site.service"
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class SiteKit:
    """The files of one device: all below one folder, whose secrets only its owner reads.

    Args:
        folder: of the kit, absolute.
        site: the `site.toml`, absolute.
        superlink: host:port at which the server's fleet is reached.
        port: of the SuperNode on the loopback interface: its apps speak to it there.
    """

    folder: Path
    site: Path
    superlink: str
    port: int = 9094

    @classmethod
    def prepare(
        cls,
        folder: Path,
        site: Path,
        *,
        superlink: str,
        authority: Path,
        port: int = 9094,
        user: str = "fednas",
    ) -> Self:
        """Make a device's key; one that is there is kept, so that the server goes on knowing it.

        Args:
            folder: made when missing.
            site: a `site.toml` that is complete and names the server's key; its data need not be there yet.
            superlink: host:port.
            authority: the server's `ca.crt`, as its operator handed it over.
            port: 1 to 65535.
            user: under whom systemd runs the device.

        Raises:
            ConfigurationError: the site, the address or the certificate is malformed, or the folder cannot
                be written.

        Guarantees:
            - The private key never leaves the folder and is never readable by others.
            - No record is read.
        """
        config = load_site(site)
        if config.server_key is None:
            raise ConfigurationError(
                f"{site} has no server_key: whoever reached the device could spend its budget; add the text "
                "of the server.pub that the server's operator handed over"
            )
        found = _ADDRESS.fullmatch(superlink)
        if found is None or not 1 <= int(found[2]) <= 65535:
            raise ConfigurationError(f"expected HOST:PORT after --superlink, got {superlink!r:.80}")
        check_port(port)
        _check_authority(authority)
        kit = cls(folder=folder.resolve(), site=site.resolve(), superlink=superlink, port=port)
        if '"' in str(kit.site):
            raise ConfigurationError(f"{site} has a quotation mark in its path, which no command line takes")
        try:
            kit.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if authority.resolve() != kit.authority:
                shutil.copyfile(authority, kit.authority)
            if not kit.key.exists():
                _write_key(kit, config)
            write_whole(kit.folder / UNIT, kit.unit(user).encode())
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {folder}: {error.strerror}; choose another folder"
            ) from error
        return kit

    @property
    def key(self) -> Path:
        """The device's private key."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """What the operator registers: it is nothing secret."""
        return self.folder / "node.pub"

    @property
    def authority(self) -> Path:
        """The certificate by which the device knows the server."""
        return self.folder / "ca.crt"

    @property
    def supernode(self) -> tuple[str, ...]:
        """The command that runs the SuperNode."""
        return (
            "flower-supernode",
            *("--superlink", self.superlink),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.key)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--node-config", f'site="{self.site}"'),
        )

    def unit(self, user: str) -> str:
        """The systemd unit of the device."""
        ledger = load_site(self.site).ledger.parent
        return unit(
            "fednas site (Flower SuperNode)",
            self.supernode,
            user=user,
            folders=(self.folder, ledger),
            environment={"FLWR_HOME": str(self.folder / "flower")},
        )


def _write_key(kit: SiteKit, config: SiteConfig) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    kit.public_key.write_bytes(public + f" {config.name}\n".encode())
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_secret(kit.key, content)  # the last file: a kit with a key is whole


def _check_authority(path: Path) -> None:
    try:
        x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}; give the ca.crt that the server's operator handed over"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is no certificate; give the server's ca.crt, in PEM") from error
