"""Checks of what is reached over the network: who answers, what time it is, and what must not answer."""

import base64
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fednas.certificates import read_key
from fednas.doctor.endpoint import Answer, Endpoint
from fednas.doctor.files import SOON_DAYS
from fednas.doctor.findings import Finding, fail, ok, warn

Clock = Callable[[], float]  # Unix time in seconds

AHEAD_S: Final = 5.0
"""Flower refuses what is signed later than its own clock, by this much or more."""

BEHIND_S: Final = 60.0

CONTROL: Final = ("/v1/control/list-runs", "/v1/runtime/acquire-task")
"""Whoever reaches the first can start runs, whoever reaches the second can take their tasks."""

# Flower 1.41's numbers of its errors.
_INVALID_INTERVAL: Final = 2003
_NOT_ACTIVATED: Final = 2004
_PROTOBUF: Final = "application/protobuf"

# OpenSSL's numbers of what is wrong with a certificate.
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_OTHER_NAME: Final = (62, 64)


def connection(endpoint: Endpoint, now: Clock, renew: str) -> Finding:
    """Whether the right server answers, over TLS 1.3.

    Args:
        endpoint: where.
        now: Unix time.
        renew: what to do about its certificate.
    """
    where = f"{endpoint.host}:{endpoint.port}"
    bound = "TLS 1.3 with a certificate of the authority, for this name, in its dates"
    try:
        with endpoint.connect() as held:
            certificate = held.getpeercert()
    except ssl.SSLCertVerificationError as error:
        return fail(f"{where}: {_reason(error)}", bound, renew)
    except ssl.SSLError as error:
        return fail(f"{where}: no TLS 1.3 ({error.reason})", bound, "check the address and who listens there")
    except socket.gaierror:
        return fail(
            f"the name {endpoint.host} is not known here", bound, "check the name and this host's DNS"
        )
    except OSError as error:
        words = error.strerror or str(error)
        return fail(f"{where}: {words}", bound, "start the server; open the way to it in every firewall")
    assert certificate is not None
    days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - now()) / 86400
    seen = f"{where}: TLS 1.3, its certificate ends in {days:.0f} days"
    return warn(seen, bound, renew) if days < SOON_DAYS else ok(seen, bound)


def _reason(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "its certificate has expired"
    if error.verify_code == _NOT_YET:
        return "its certificate is not valid yet: a clock is wrong"
    if error.verify_code in _OTHER_NAME:
        return "its certificate is for other names"
    return f"its certificate is not of our authority ({error.verify_message})"


def health(endpoint: Endpoint) -> Finding:
    """Whether the SuperLink answers behind whatever stands before it."""
    status = endpoint.ask("GET", "/health").status
    bound = "/health answers 200"
    if status == 200:
        return ok("/health answers 200", bound)
    return fail(f"/health answers {status}", bound, "start the SuperLink, and let the proxy pass /health")


def clock(endpoint: Endpoint, now: Clock) -> Finding:
    """Whether this clock agrees with the server's: signatures have dates."""
    before = now()
    answer = endpoint.ask("HEAD", "/health")
    bound = f"at most {AHEAD_S:g} s ahead of the server and {BEHIND_S:g} s behind it"
    if answer.date is None:
        return warn("the server does not tell its time", bound, "compare the clocks by hand")
    ahead = (before + now()) / 2 - (answer.date + 0.5)  # the answer's date is cut to whole seconds
    seen = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server"
    if -BEHIND_S <= ahead <= AHEAD_S:
        return ok(seen, bound)
    return fail(seen, bound, "set the clock: sudo timedatectl set-ntp true")


def control(endpoint: Endpoint) -> Finding:
    """Whether the paths that start code are out of reach.

    The requests ask for nothing: their type is one that Flower reads none of.
    """
    bound = "404: these paths end at the proxy"
    reached = []
    for path in CONTROL:
        status = endpoint.ask("POST", path, headers={"Content-Type": "text/plain"}).status
        if status != 404:
            reached.append(f"{path} answers {status}")
    if not reached:
        return ok("404 from " + ", ".join(CONTROL), bound)
    return fail(
        "; ".join(reached),
        bound,
        "whoever reaches them runs code on every device: show the world the kit's nginx.conf only",
    )


def node_known(endpoint: Endpoint, key: Path, now: Clock) -> Finding:
    """Whether the SuperLink knows the device's key.

    A device is asked to come online by a request that no SuperLink grants: with an interval of heartbeats of
    0 s. It looks the key up first, so it refuses a known one otherwise than an unknown one, and nothing
    changes: not even for a SuperNode that runs with this key.
    """
    bound = "the key is registered with the SuperLink"
    body, headers = _activation(read_key(key), now())
    answer = endpoint.ask("POST", "/v1/fleet/activate-node", body=body, headers=headers)
    if answer.flower_code == _INVALID_INTERVAL:
        return ok("the SuperLink knows the key", bound)
    if answer.flower_code == _NOT_ACTIVATED:
        return fail(
            "the SuperLink does not know the key",
            bound,
            "hand node.pub to the server's operator: flwr supernode register",
        )
    if answer.status == 401:
        return fail(
            "the SuperLink does not believe the signature", bound, "hand node.pub to the operator anew"
        )
    return fail(
        f"/v1/fleet/activate-node answers {answer.status}",
        bound,
        "the proxy must pass /v1/fleet/ to a SuperLink of the same Flower",
    )


def _activation(key: ec.EllipticCurvePrivateKey, now: float) -> tuple[bytes, dict[str, str]]:
    """Body and head of a request that is signed as Flower's SuperNode signs it."""
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    moment = datetime.fromtimestamp(now, UTC).isoformat()
    signature = key.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
    headers = {
        "Content-Type": _PROTOBUF,
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": base64.b64encode(signature).decode(),
    }
    return _field(1, public), headers  # ActivateNodeRequest.public_key; its heartbeat_interval stays 0


def runtime(endpoint: Endpoint) -> Finding:
    """Whether the SuperLink gives tasks to those alone who know its secret.

    A SuperLink that gave them to anybody would have none of the kind that is asked for.
    """
    bound = "/v1/runtime/acquire-task answers 401: apart from the apps' secret nobody gets their tasks"
    headers = {
        "Content-Type": _PROTOBUF,
        "flwr-package-name": "flwr",
        "flwr-package-version": version("flwr"),
        "flwr-component-name": "fednas doctor",
    }
    answer = endpoint.ask(
        "POST", "/v1/runtime/acquire-task", body=_field(1, b"fednas-doctor"), headers=headers
    )
    if answer.status == 401:
        return ok("/v1/runtime/acquire-task answers 401", bound)
    if b"version" in answer.body and answer.status != 200:
        return fail(
            f"the SuperLink runs another Flower than {version('flwr')}, which is installed",
            bound,
            "restart fednas-superlink and fednas-superexec",
        )
    return fail(
        f"/v1/runtime/acquire-task answers {answer.status}",
        bound,
        "start the SuperLink by the kit's unit: --isolation process with its secret",
    )


def fleet(endpoint: Endpoint) -> Finding:
    """Whether the proxy passes what devices need."""
    bound = "/v1/fleet/ is passed to the SuperLink"
    answer: Answer = endpoint.ask("POST", "/v1/fleet/activate-node", headers={"Content-Type": _PROTOBUF})
    if answer.status == 401:  # of the SuperLink: nobody signed
        return ok("/v1/fleet/activate-node reaches the SuperLink", bound)
    return fail(
        f"/v1/fleet/activate-node answers {answer.status}",
        bound,
        "include the kit's nginx.conf; start the SuperLink with --enable-supernode-auth",
    )


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
