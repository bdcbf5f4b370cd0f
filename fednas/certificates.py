"""Authorities, what they sign, and what is asked of them: certificates of servers, sites and auditors."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fednas.errors import ConfigurationError
from fednas.operations import write_secret, write_whole

Role = Literal["server", "client"]

_HOST: Final = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_AUDITOR: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_AUTHORITY_DAYS: Final = 3650
_CERTIFICATE_DAYS: Final = 397  # the longest that common verifiers take
_SKEW: Final = timedelta(hours=1)  # a device without a clock battery may be behind
_PURPOSES: Final[Mapping[Role, ObjectIdentifier]] = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Who signs certificates: its own, and the key of it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, certificate: Path, key: Path, name: str) -> Self:
        """Make an authority, or open the one that is there.

        Args:
            certificate: PEM file, for everybody.
            key: PEM file, for its owner alone.
            name: of a new one.

        Raises:
            ConfigurationError: one of the files is missing, or is of another kind.
            OSError: they cannot be read or written.
        """
        if key.exists() != certificate.exists():
            raise ConfigurationError(
                f"{key} and {certificate} belong together, one is missing: restore it or take another folder"
            )
        if not key.exists():
            private = ec.generate_private_key(ec.SECP384R1())
            subject = _name(name)
            made = (
                _builder(subject, private.public_key(), _AUTHORITY_DAYS, subject)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(sign=True), critical=True)
                .add_extension(
                    x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False
                )
                .sign(private, hashes.SHA384())
            )
            write_secret(key, private_pem(private))
            write_whole(certificate, made.public_bytes(serialization.Encoding.PEM))
        return cls(certificate=read_certificate(certificate), key=read_key(key))

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        name: str,
        role: Role,
        alternatives: Sequence[x509.GeneralName] = (),
    ) -> bytes:
        """Sign a certificate that is good for one role, and signs no others.

        Args:
            public_key: whose it is.
            name: of its owner.
            role: `server` lets it be found behind its names, `client` lets it ask.
            alternatives: DNS names and IP addresses of a server.

        Returns:
            The certificate in PEM.
        """
        builder = _builder(_name(name), public_key, _CERTIFICATE_DAYS, self.certificate.subject)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        issued = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_PURPOSES[role]]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA384())
        )
        return issued.public_bytes(serialization.Encoding.PEM)


def alternative(host: str, option: str) -> x509.GeneralName:
    """A DNS name or an IP address, as a certificate holds it.

    Raises:
        ConfigurationError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise ConfigurationError(f"expected a DNS name or an IP address after {option}, got {host!r:.80}")
    return x509.DNSName(host)


def check_auditor(name: str, option: str) -> None:
    """Refuse a name that cannot stand in a certificate and in the name of its file.

    Args:
        name: of an auditor.
        option: where it was given, for the message.

    Raises:
        ConfigurationError: it has other signs, or too many.
    """
    if not _AUDITOR.fullmatch(name):
        raise ConfigurationError(
            f"expected a name of small letters, digits, - and _, at most 40, {option}, got {name!r:.80}"
        )


def request_certificate(
    key: Path, request: Path, *, name: str, alternatives: Sequence[x509.GeneralName] = ()
) -> None:
    """Make a key, or take the one that is there, and write what its owner asks an authority to sign.

    Args:
        key: PEM file, for its owner alone.
        request: PEM file, for the authority; nothing secret.
        name: of the owner.
        alternatives: DNS names and IP addresses of a server; none for a client.

    Raises:
        ConfigurationError: the key is of another kind.
        FileExistsError: the key was made by somebody else meanwhile.
        OSError: they cannot be read or written.

    Guarantees:
        The key is never readable by others, and never overwritten.
    """
    if not key.exists():
        write_secret(key, private_pem(ec.generate_private_key(ec.SECP384R1())))
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    signed = builder.sign(read_key(key), hashes.SHA384())
    write_whole(request, signed.public_bytes(serialization.Encoding.PEM))


def read_request(path: Path) -> tuple[ec.EllipticCurvePublicKey, frozenset[x509.GeneralName]]:
    """The key that a request asks to have signed, and the names that it asks for.

    Whoever made it has the private key. Nothing else in it is believed.

    Raises:
        ConfigurationError: it cannot be read, is no request, or has a key of another kind.
    """
    advice = "make it with `python -m client prepare --ledger` or `fednas ledger request`"
    try:
        request = x509.load_pem_x509_csr(path.read_bytes())
        valid = request.is_signature_valid
        key = request.public_key()
        extensions = request.extensions
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; give a request in PEM") from error
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise ConfigurationError(f"{path} is no certificate request in PEM; {advice}") from error
    if not valid:
        raise ConfigurationError(f"{path} is not signed by its own key; {advice}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ConfigurationError(f"the key of {path} is on neither P-256 nor P-384; {advice}")
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return key, frozenset()
    return key, frozenset(names)


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} is no certificate in PEM") from error


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a file.

    Raises:
        ConfigurationError: it cannot be read, or is of another kind.
    """
    try:
        content = path.read_bytes()
        openssh = b"BEGIN OPENSSH PRIVATE KEY" in content
        load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        key = load(content, None)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"{path} is no private key without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path} is not a key on an elliptic curve")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PEM, without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int, issuer: x509.Name
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
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
