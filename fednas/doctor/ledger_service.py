"""Checks of a site's ledger service: who it is, and that nobody without a certificate is answered."""

import ssl

from fednas.doctor import files
from fednas.doctor.endpoint import Endpoint
from fednas.doctor.findings import Finding, fail, ok, skip, warn
from fednas.doctor.kit import LedgerServiceKit
from fednas.doctor.listeners import listeners
from fednas.operations import parse_address

_RENEW = "send ledger.csr to the operator (python -m server issue), and put what comes back into the kit"


def certificate(kit: LedgerServiceKit, now: float) -> Finding:
    """Whether the service has a certificate by which auditors know it.

    Args:
        kit: of the service.
        now: Unix time.
    """
    host, _ = parse_address(kit.address, "address")
    if not kit.certificate.exists() or not kit.authority.exists():
        missing = kit.certificate if not kit.certificate.exists() else kit.authority
        return warn(f"{missing.name} is not there yet", f"a certificate for {host}", _RENEW)
    signer = files.authority(kit.authority, now, _RENEW)
    if signer.state == "fail":
        return signer
    return files.certificate(kit.certificate, kit.key, kit.authority, [host], now, _RENEW)


def stranger(kit: LedgerServiceKit) -> Finding:
    """Whether somebody without a certificate gets anything from the running service."""
    host, port = parse_address(kit.address, "address")
    bound = "nobody without an auditor's certificate is answered"
    found = listeners(port)
    if not found:
        return skip("the service does not run" if found == [] else "this system does not tell who listens")
    if not kit.authority.exists():
        return skip(f"{kit.authority.name} is not there yet")
    endpoint = Endpoint(host=host, port=port, authority=kit.authority, reach=_reach(found[0].address))
    try:
        connection = endpoint.connect()
    except ssl.SSLCertVerificationError as error:
        return fail(f"it shows another certificate ({error.verify_message})", bound, "restart fednas-ledger")
    with connection:  # in TLS 1.3 a server refuses only after the client's side of the handshake
        try:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answered = connection.recv(1)
        except OSError:
            answered = b""
    if answered:
        return fail("it answers anybody", bound, "start it by the kit's unit: fednas ledger serve")
    return ok("it refuses who has no certificate", bound)


def _reach(address: str) -> str:
    """Where this machine reaches a socket that may wait at all of its addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
