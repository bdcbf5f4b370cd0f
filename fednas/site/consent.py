"""Whether a site takes part: its owner may pause, leave, or veto a study at any time."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from fednas.config import SiteConfig
from fednas.errors import ConsentWithdrawnError, SitePausedError
from fednas.operations import write_whole

_FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What the owner of a dataset allows now.

    Args:
        paused: nothing is answered until the owner resumes.
        left: nothing is answered any more, and the server need not ask again.
        vetoed: names of studies that get no answer.
    """

    paused: bool = False
    left: bool = False
    vetoed: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: SiteConfig) -> Self:
        """The owner's last word; all is allowed before the first.

        Raises:
            SitePausedError: the file cannot be read. What it said is unknown, so nothing leaves.
        """
        path = _path(config)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path) from error
        try:
            return cls._parse(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise _unreadable(path) from error

    @classmethod
    def _parse(cls, value: Any) -> Self:
        if not isinstance(value, dict) or set(value) != {"format", "paused", "left", "vetoed"}:
            raise ValueError("another form")
        paused, left, vetoed = value["paused"], value["left"], value["vetoed"]
        if value["format"] != _FORMAT or not isinstance(paused, bool) or not isinstance(left, bool):
            raise ValueError("another form")
        if not isinstance(vetoed, list) or not all(isinstance(name, str) for name in vetoed):
            raise ValueError("another form")
        return cls(paused=paused, left=left, vetoed=tuple(vetoed))

    def check(self, study: str | None = None) -> None:
        """Refuse what the owner does not allow.

        Args:
            study: whose request it is; None for a greeting, which belongs to none.

        Raises:
            ConsentWithdrawnError: the site left, or vetoed the study.
            SitePausedError: it is paused.
        """
        if self.left:
            raise ConsentWithdrawnError("the site has left; its owner may let it return: fednas site resume")
        if study is not None and study in self.vetoed:
            raise ConsentWithdrawnError(f"the owner vetoed the study {study!r}")
        if self.paused:
            raise SitePausedError("the site is paused; its owner may let it go on: fednas site resume")

    def keep(self, config: SiteConfig) -> None:
        """Write it down durably: a power cut does not undo what the owner said.

        Raises:
            OSError: the disk refuses.
        """
        path = _path(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"format": _FORMAT} | asdict(self)
        write_whole(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())

    def pause(self) -> Self:
        """Nothing is answered for now."""
        return replace(self, paused=True)

    def leave(self) -> Self:
        """Nothing is answered any more."""
        return replace(self, left=True)

    def resume(self) -> Self:
        """Answer again; a veto of a study stays."""
        return replace(self, paused=False, left=False)

    def veto(self, study: str) -> Self:
        """Answer nothing of a study."""
        return replace(self, vetoed=tuple(sorted({*self.vetoed, study})))

    def permit(self, study: str) -> Self:
        """Take a veto back."""
        return replace(self, vetoed=tuple(name for name in self.vetoed if name != study))


def _path(config: SiteConfig) -> Path:
    """Beside the ledger: consent is the dataset's, whatever site.toml names it."""
    return config.ledger.with_name(config.ledger.name + ".consent.json")


def _unreadable(path: Path) -> SitePausedError:
    return SitePausedError(f"{path} cannot be read, so nothing is answered; say again what is allowed")
