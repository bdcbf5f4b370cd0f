"""Monitoring: how runs and ledgers are doing, read from the files that are there anyway."""

from fednas.errors import MissingExtraError
from fednas.monitoring.progress import Progress, RoundRecord, RunReader, SiteProgress

__all__ = ["Progress", "RoundRecord", "RunReader", "SiteProgress", "require_extra"]


def require_extra() -> None:
    """Refuse in one line where the library of the exporter is not installed.

    Raises:
        MissingExtraError: with the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("prometheus_client") is None:
        raise MissingExtraError('prometheus_client is not installed; run: pip install "fednas[metrics]"')
