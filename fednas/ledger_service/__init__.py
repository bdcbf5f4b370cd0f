"""The ledger service: a site shows its ledger to auditors, who pull a whole fleet and verify it offline."""

from fednas.errors import MissingExtraError

__all__ = ["require_extra"]


def require_extra() -> None:
    """Refuse in one line where the libraries of the service are not installed.

    Raises:
        MissingExtraError: with the command that installs them.
    """
    from importlib.util import find_spec

    missing = [name for name in ("grpc", "grpc_health", "grpc_reflection") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{missing[0]} is not installed; run: pip install "fednas[service]"')
