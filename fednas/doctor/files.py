"""Checks of a kit's files: certificates in their dates, secrets of their owner alone, whole units."""

import os
import pwd
import re
import shlex
import stat
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fednas.certificates import alternative, read_certificate, read_key
from fednas.doctor.findings import Finding, fail, ok, warn
from fednas.operations import QUIET

SOON_DAYS: Final = 30
_INSTALLED: Final = Path("/etc/systemd/system")


def authority(path: Path, now: float, renew: str) -> Finding:
    """Whether a certificate is an authority's, and in its dates.

    Args:
        path: PEM file.
        now: Unix time.
        renew: what to do where it is not.
    """
    bound = "the certificate of an authority, in its dates"
    found = read_certificate(path)
    try:
        signs = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        signs = False
    if not signs:
        return fail(f"{path.name} is the certificate of no authority", bound, renew)
    return _dates(found, path.name, bound, now, renew)


def certificate(
    path: Path, key: Path, signer: Path, hosts: Collection[str], now: float, renew: str
) -> Finding:
    """Whether a server's certificate is of its key and its authority, for its names and in its dates.

    Args:
        path: PEM file.
        key: of it.
        signer: certificate of the authority.
        hosts: DNS names and IP addresses.
        now: Unix time.
        renew: what to do where it is not.
    """
    bound = f"signed by {signer.name}, for {', '.join(hosts)}, in its dates"
    found, issuer = read_certificate(path), read_certificate(signer)
    try:
        found.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return fail(f"{path.name} is not signed by {signer.name}", bound, renew)
    if found.public_key() != read_key(key).public_key():
        return fail(f"{path.name} is of another key than {key.name}", bound, renew)
    try:
        names = set(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        purposes = list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return fail(f"{path.name} has no names, or is not a server's", bound, renew)
    missing = [host for host in hosts if alternative(host, "a host") not in names]
    if missing or ExtendedKeyUsageOID.SERVER_AUTH not in purposes:
        return fail(f"{path.name} is not a server's certificate for {', '.join(missing)}", bound, renew)
    return _dates(found, path.name, bound, now, renew)


def _dates(found: x509.Certificate, name: str, bound: str, now: float, renew: str) -> Finding:
    moment = datetime.fromtimestamp(now, UTC)
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    if moment < begin:
        return fail(f"{name} begins on {begin:%Y-%m-%d}, later than this clock", bound, "set the clock")
    if moment > end:
        return fail(f"{name} expired on {end:%Y-%m-%d}", bound, renew)
    seen = f"{name} is good until {end:%Y-%m-%d}"
    return warn(seen, bound, renew) if end - moment < timedelta(days=SOON_DAYS) else ok(seen, bound)


def private(paths: Sequence[Path], user: str) -> Finding:
    """Whether files are readable by the service's user, and by nobody else.

    Args:
        paths: of secrets, and of folders that hold nothing else.
        user: under whom the service runs.
    """
    bound = f"of {user} alone: mode 600, a folder 700"
    try:
        owner = pwd.getpwnam(user).pw_uid
    except KeyError:
        return fail(
            f"there is no user {user}", bound, f"sudo useradd --system {user}, or prepare with --user"
        )
    for path in paths:
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            allowed = "700" if path.is_dir() else "600"
            return fail(
                f"{path.name} may be read by others: mode {mode:03o}",
                bound,
                f"sudo chmod {allowed} {path}; if others use this machine, make a new one",
            )
        if status.st_uid != owner:
            return fail(
                f"{path.name} belongs to user {_name_of(status.st_uid)}",
                bound,
                f"sudo chown -R {user} {path}",
            )
    return ok(f"{len(paths)} secrets of {user} alone", bound)


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def pair(key: Path, public_key: Path) -> Finding:
    """Whether a device's two keys belong together, and are of a kind that Flower takes."""
    bound = "node.pub is of node.key, on a NIST curve"
    try:
        registered = serialization.load_ssh_public_key(public_key.read_bytes())
    except ValueError:
        return fail(f"{public_key.name} is no public key of OpenSSH", bound, f"ssh-keygen -y -f {key}")
    held = read_key(key).public_key()
    if not isinstance(held.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        return fail(
            f"{key.name} is on {held.curve.name}", bound, "remove both keys and prepare the kit again"
        )
    if held != registered:
        return fail(
            f"{public_key.name} is of another key", bound, f"ssh-keygen -y -f {key} > {public_key.name}"
        )
    return ok(f"{public_key.name} is of {key.name}", bound)


def unit(path: Path, needs: Collection[str] = (), installed: Path = _INSTALLED) -> Finding:
    """Whether the unit that systemd starts, or would start, is whole.

    Args:
        path: in the kit.
        needs: words that its command must have.
        installed: where systemd keeps those of this machine.
    """
    used = installed / path.name if (installed / path.name).exists() else path
    text = used.read_text(encoding="utf-8")
    bound = "its program is there, and its variables let Flower call nobody"
    again = "prepare the kit again, then sudo systemctl daemon-reload"
    commands = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(commands[-1].replace("$$", "$").replace("%%", "%")) if commands else []
    if not words or not os.access(words[0], os.X_OK):
        return fail(
            f"{used.name} starts {words[0] if words else 'nothing'}, which is no program", bound, again
        )
    missing = [word for word in needs if word not in words]
    if missing or "--insecure" in words:
        return fail(f"{used.name} starts it without {', '.join(missing) or 'TLS'}", bound, again)
    variables = dict(
        part.replace("%%", "%").partition("=")[::2]
        for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
        for part in shlex.split(line)
    )
    wrong = [name for name, value in QUIET.items() if variables.get(name) != value]
    if wrong:
        return fail(f"{used.name} does not set {', '.join(wrong)}", bound, again)
    return ok(f"{used} is whole", bound)
