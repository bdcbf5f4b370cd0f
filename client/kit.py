"""What a site needs beside this program: a key by which the server knows its device, and what it runs."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednas.certificates import alternative, read_certificate, request_certificate
from fednas.config import SiteConfig, load_site
from fednas.doctor.kit import LedgerServiceKit, SiteKitFile, write_kit
from fednas.errors import ConfigurationError
from fednas.operations import (
    check_port,
    hand_over,
    is_loopback,
    join_address,
    parse_address,
    unit,
    write_secret,
    write_whole,
)

UNIT: Final = "fednas-site.service"
LEDGER_UNIT: Final = "fednas-ledger.service"


@dataclass(frozen=True, kw_only=True)
class SiteKit:
    """The files of one device: all below one folder, whose secrets only its owner reads.

    Args:
        folder: of the kit, absolute.
        site: the `site.toml`, absolute.
        superlink: host:port at which the server's fleet is reached.
        port: of the SuperNode on the loopback interface: its apps speak to it there.
        ledger: HOST:PORT at which auditors reach its ledger service; None without one.
    """

    folder: Path
    site: Path
    superlink: str
    port: int = 9094
    ledger: str | None = None

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
        ledger: str | None = None,
    ) -> Self:
        """Make a device's key; one that is there is kept, so that the server goes on knowing it.

        Args:
            folder: made when missing.
            site: a `site.toml` that is complete and names the server's key; its data need not be there yet.
            superlink: host:port.
            authority: the server's `ca.crt`, as its operator handed it over.
            port: 1 to 65535.
            user: under whom systemd runs the device.
            ledger: HOST:PORT at which auditors reach its ledger service, which then gets a key and a request
                for a certificate; None prepares none.

        Raises:
            ConfigurationError: the site, the address or the certificate is malformed, or the folder cannot
                be written.

        Guarantees:
            - The private keys never leave the folder and are never readable by others.
            - No record is read.
        """
        config = load_site(site)
        if config.server_key is None:
            raise ConfigurationError(
                f"{site} has no server_key: whoever reached the device could spend its budget; add the text "
                "of the server.pub that the server's operator handed over"
            )
        parse_address(superlink, "--superlink")
        check_port(port)
        names = [] if ledger is None else [alternative(parse_address(ledger, "--ledger")[0], "--ledger")]
        _check_authority(authority)
        kit = cls(folder=folder.resolve(), site=site.resolve(), superlink=superlink, port=port, ledger=ledger)
        if '"' in str(kit.site):
            raise ConfigurationError(f"{site} has a quotation mark in its path, which no command line takes")
        try:
            kit.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if authority.resolve() != kit.authority:
                shutil.copyfile(authority, kit.authority)
            if not kit.key.exists():
                _write_key(kit, config)
            if ledger is not None:
                own = kit.folder / "ledger.key", kit.folder / "ledger.csr"
                request_certificate(*own, name=config.name, alternatives=names)
            for name, text in kit.units(user).items():
                write_whole(kit.folder / name, text.encode())
            write_kit(kit.described(user), kit.folder)
            hand_over(kit.folder, user)
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

    @property
    def ledger_service(self) -> tuple[str, ...]:
        """The command that shows the site's ledger to auditors; empty without such a service."""
        if self.ledger is None:
            return ()
        host, port = parse_address(self.ledger, "--ledger")
        return (
            "fednas",
            *("ledger", "serve", str(self.site)),
            *("--certificate", str(self.folder / "ledger.crt"), "--key", str(self.folder / "ledger.key")),
            *("--client-ca", str(self.folder / "auditors.crt")),
            # A name says nothing of interfaces, and behind a router an address is another one's.
            *("--listen", join_address("127.0.0.1" if is_loopback(host) else "::", port)),
        )

    def units(self, user: str) -> Mapping[str, str]:
        """The systemd units of the device, by file name."""
        ledger = load_site(self.site).ledger.parent
        made = {
            UNIT: unit(
                "fednas site (Flower SuperNode)",
                self.supernode,
                user=user,
                folders=(self.folder, ledger),
                environment={"FLWR_HOME": str(self.folder / "flower")},
            )
        }
        if self.ledger is not None:
            # SQLite marks in a file beside an open ledger that it is being read.
            made[LEDGER_UNIT] = unit(
                "fednas ledger service", self.ledger_service, user=user, folders=(ledger,)
            )
        return made

    def described(self, user: str) -> SiteKitFile:
        """What the kit says of itself, for those who examine it."""
        service = None
        if self.ledger is not None:
            service = LedgerServiceKit(
                address=self.ledger,
                certificate=self.folder / "ledger.crt",
                key=self.folder / "ledger.key",
                authority=self.folder / "auditors.crt",
                unit=self.folder / LEDGER_UNIT,
            )
        return SiteKitFile(
            user=user,
            site=self.site,
            superlink=self.superlink,
            port=self.port,
            authority=self.authority,
            key=self.key,
            public_key=self.public_key,
            unit=self.folder / UNIT,
            ledger=service,
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
        read_certificate(path)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error}; give the ca.crt that the server's operator handed over"
        ) from error
