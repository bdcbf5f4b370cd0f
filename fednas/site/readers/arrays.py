"""Records as arrays: a file written by `numpy.savez`, or a Python function of the site's owner."""

import importlib
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from fednas.config import DataSchema
from fednas.errors import DatasetError
from fednas.site.readers.records import Records


def read_archive(path: Path) -> Records:
    """Read the arrays `x`, `y` and, optionally, `id` of an `.npz` file.

    Raises:
        DatasetError: no such file, or other arrays.

    Guarantees:
        No pickle is ever decoded.
    """
    advice = "expected an .npz file written by numpy.savez"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DatasetError(f"{advice}, or a .csv, a .parquet, a folder of images")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DatasetError(f"cannot be read; {advice}, readable by this user") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{advice}, without Python objects in it") from error
    if not {"x", "y"} <= arrays.keys() or not arrays.keys() <= {"x", "y", "id"}:
        raise DatasetError("expected the arrays x, y and optionally id; write them with numpy.savez")
    return Records(x=arrays["x"], y=arrays["y"], names=arrays.get("id"))


def read_function(source: str, schema: DataSchema) -> Records:
    """Call a function of the site's owner: `records(schema) -> (x, y)` or `(x, y, id)`, arrays as in `.npz`.

    The function must keep what the other readers keep: each record by itself, none that decides whether it
    returns.

    Args:
        source: `package.module:function`, importable where the site runs.
        schema: what the function is called with.

    Raises:
        DatasetError: it cannot be imported, raised, or returned something else.

    Guarantees:
        Nothing of an exception is kept, neither text nor context: either may hold a record.
    """
    module, _, name = source.partition(":")
    returned, called = None, False
    with suppress(Exception, SystemExit):  # an owner's code may raise anything, and a record be in it
        returned = getattr(importlib.import_module(module), name)(schema)
        called = True
    if not called:
        raise DatasetError("cannot be imported or has raised an exception; call it yourself to see which")
    arrays = returned if isinstance(returned, tuple) else ()
    if len(arrays) not in (2, 3) or not all(_is_array(array) for array in arrays):
        raise DatasetError("expected a tuple of NumPy arrays, (x, y) or (x, y, id), without masks")
    x, y, *names = (np.asarray(array) for array in arrays)
    return Records(x=x, y=y, names=names[0] if names else None)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
