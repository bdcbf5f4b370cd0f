"""Certificates for ledger services and for auditors, under an authority that no device trusts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fednas.certificates import Authority, alternative, check_auditor, read_request
from fednas.doctor.kit import ServerKitFile, read_kit
from fednas.errors import ConfigurationError
from fednas.operations import write_whole

AUTHORITY: Final = "auditors.crt"


@dataclass(frozen=True, kw_only=True)
class Issued:
    """What goes back to whoever asked.

    Args:
        certificate: of his key.
        authority: of the auditors: by it sites know auditors, and auditors know sites.
    """

    certificate: Path
    authority: Path


def issue_to_site(folder: Path, request: Path, hosts: Sequence[str]) -> Issued:
    """Sign the request of a site's ledger service, as a server and as nothing else.

    Args:
        folder: of the server's kit.
        request: of the site, PEM.
        hosts: DNS names and IP addresses at which auditors reach it: those that it asks for, as the operator
            knows them.

    Raises:
        ConfigurationError: it asks for other names, is no request, or there is no kit in the folder.

    Guarantees:
        - What is signed here makes nobody a server that devices trust: they trust another authority.
        - A site's certificate makes it no auditor of other sites, and an auditor's makes him no site.
    """
    wanted = [alternative(host, "--site") for host in hosts]
    key, asked = read_request(request)
    if asked and asked != frozenset(wanted):
        names = ", ".join(sorted(str(name.value) for name in asked))
        raise ConfigurationError(
            f"{request.name} asks for {names}, not for {', '.join(hosts)}; find out whether it is the "
            "site's, and give --site for each of its names"
        )
    authority = _authority(folder)
    made = authority.issue(key, name=hosts[0], role="server", alternatives=wanted)
    return _kept(folder, f"site-{hosts[0].replace(':', '_')}", made)


def issue_to_auditor(folder: Path, request: Path, name: str) -> Issued:
    """Sign the request of an auditor, as a client and as nothing else.

    Args:
        folder: of the server's kit.
        request: of the auditor, PEM.
        name: of the auditor, as the operator knows him.

    Raises:
        ConfigurationError: the name is malformed, it is no request, or there is no kit in the folder.
    """
    check_auditor(name, "after --auditor")
    key, _ = read_request(request)
    return _kept(folder, f"auditor-{name}", _authority(folder).issue(key, name=name, role="client"))


def _authority(folder: Path) -> Authority:
    """The auditors' authority, made when it is first needed."""
    kit = read_kit(folder)
    if not isinstance(kit, ServerKitFile):
        raise ConfigurationError(
            f"{folder} is no server's kit; give the folder of `python -m server prepare`"
        )
    try:
        return Authority.open(folder / AUTHORITY, kit.secrets / "auditors.key", "fednas auditors")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _kept(folder: Path, name: str, certificate: bytes) -> Issued:
    """Keep what was issued: the folder is the list of everybody who has a certificate."""
    path = folder / "issued" / f"{name}.crt"
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, certificate)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return Issued(certificate=path, authority=folder / AUTHORITY)


def _unwritable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"cannot write {folder}: {error.strerror}; run it as the owner of the kit")
