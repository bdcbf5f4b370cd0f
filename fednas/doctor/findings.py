"""What a check finds, and a list of checks of which none is made on ground that did not hold."""

import http.client
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm

from fednas.errors import FednasError

State = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found; all of it may be printed anywhere.

    Args:
        state: `ok`, `warn` where it works but will not for long or not well, `fail` where it does not hold,
            `skip` where it could not be tested.
        seen: what was found, or why nothing was tested.
        bound: what should be.
        remedy: what to do, where there is something to do.
        name: of the check; the checklist gives it.
    """

    state: State
    seen: str
    bound: str = ""
    remedy: str = ""
    name: str = ""


def ok(seen: str, bound: str) -> Finding:
    """It is as it should be."""
    return Finding(state="ok", seen=seen, bound=bound)


def warn(seen: str, bound: str, remedy: str) -> Finding:
    """It works, but it will not for long, or not well."""
    return Finding(state="warn", seen=seen, bound=bound, remedy=remedy)


def fail(seen: str, bound: str, remedy: str) -> Finding:
    """It is not as it should be."""
    return Finding(state="fail", seen=seen, bound=bound, remedy=remedy)


def skip(reason: str, remedy: str = "") -> Finding:
    """It could not be tested."""
    return Finding(state="skip", seen=reason, remedy=remedy)


class Checklist:
    """The checks that were made, in order.

    Args:
        user: under whom the service runs: only he can read its secrets.
    """

    def __init__(self, user: str) -> None:
        self._user = user
        self._findings: dict[str, Finding] = {}
        self._fallen: set[str] = set()  # checks that failed, or stand on one that did

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far."""
        return tuple(self._findings.values())

    def run(self, name: str, check: Callable[[], Finding], *, needs: Collection[str] = ()) -> None:
        """Make a check, unless what it stands on did not hold: one fault is one finding.

        Args:
            name: of the check, new to this list.
            check: makes it; an error that it raises is a fault that it found.
            needs: names of earlier checks. One that could not be tested does not stand in the way.
        """
        assert name not in self._findings
        assert set(needs) <= set(self._findings)
        missing = [other for other in needs if other in self._fallen]
        found = skip(f"needs {', '.join(missing)}") if missing else self._made(check)
        if missing or found.state == "fail":
            self._fallen.add(name)
        self._findings[name] = replace(found, name=name)

    def _made(self, check: Callable[[], Finding]) -> Finding:
        try:
            return check()
        except (FednasError, OSError, http.client.HTTPException) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            if any(isinstance(cause, PermissionError) for cause in (error, error.__cause__)):
                return skip(
                    f"this user may not: {words}",
                    f"run it as the service: sudo -u {self._user} fednas doctor",
                )
            return fail(words, "no error", "see what was found")
        except (ValueError, LookupError, UnsupportedAlgorithm) as error:
            # Of a library, about a file's content: its words may hold anything.
            return fail(
                f"{type(error).__name__} while it was read", "no error", "prepare or restore the file"
            )
