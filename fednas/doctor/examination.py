"""Examine whatever kit a folder holds, a server's or a site's."""

from pathlib import Path

from fednas.config import StudyConfig
from fednas.doctor.findings import Finding
from fednas.doctor.kit import SiteKitFile, read_kit
from fednas.doctor.network import Clock
from fednas.doctor.server import examine_server
from fednas.doctor.site import examine_site
from fednas.errors import ConfigurationError


def examine(folder: Path, study: StudyConfig | None, now: Clock) -> tuple[Finding, ...]:
    """Make every check of a kit.

    Args:
        folder: of the kit.
        study: that a site may take part in; None where nobody said.
        now: Unix time.

    Raises:
        ConfigurationError: there is no kit in the folder, or it is a server's and a study was given.

    Guarantees:
        - Nothing is charged to a ledger, which is opened for reading alone.
        - No finding holds a value of a record, or how many there are.
        - No running service is disturbed, and no task is taken from its queue.
    """
    kit = read_kit(folder)
    if isinstance(kit, SiteKitFile):
        return examine_site(kit, study, now)
    if study is not None:
        raise ConfigurationError("--study is for a site: its data and budget are held against it")
    return examine_server(kit, now)
