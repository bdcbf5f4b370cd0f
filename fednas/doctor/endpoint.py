"""One HTTPS endpoint, asked as a device asks it: TLS 1.3, one authority, its name verified."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 10.0
_MOST_BYTES: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an endpoint said.

    Args:
        status: of HTTP.
        date: Unix time in the answer's head, in whole seconds; None where it has none.
        body: its first bytes.
    """

    status: int
    date: float | None
    body: bytes

    @property
    def flower_code(self) -> int | None:
        """Flower's own number of an error; None where the answer is not Flower's."""
        value: Any = self.body
        try:
            for _ in range(2):  # Flower puts JSON into a string of JSON
                value = json.loads(value) if isinstance(value, str | bytes) else value
            code = value["code"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return code if type(code) is int else None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask.

    Args:
        host: name that the certificate must have.
        port: of TCP.
        authority: PEM file of the only authority that is trusted.
        reach: address to connect to, where it is another than the name.
    """

    host: str
    port: int
    authority: Path
    reach: str | None = None

    def connect(self) -> ssl.SSLSocket:
        """Connect and shake hands.

        Raises:
            OSError: nothing listens, or the other side is not who it should be; `ssl.SSLError` is one.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.authority)
        plain = socket.create_connection((self.reach or self.host, self.port), TIMEOUT_S)
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def ask(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request.

        Raises:
            OSError: there is no connection.
            http.client.HTTPException: what came back is not HTTP.
        """
        with closing(http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)) as connection:
            connection.sock = self.connect()
            connection.request(method, path, body, {"Connection": "close"} | dict(headers or {}))
            answer = connection.getresponse()
            return Answer(
                status=answer.status, date=_date(answer.getheader("Date")), body=answer.read(_MOST_BYTES)
            )


def _date(text: str | None) -> float | None:
    try:
        return None if text is None else parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
