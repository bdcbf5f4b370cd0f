"""Records as images: a folder with one sub-folder a class, each file decoded by itself."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fednas.config import DataSchema
from fednas.errors import DatasetError, MissingExtraError
from fednas.site.readers.records import Records, classes_by_name

# What hospitals and cameras write; other decoders of Pillow stay shut, among them one that runs programs.
_FORMATS: Final = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Eight bits a channel: deeper ones would be cut off, not scaled.
_MODES: Final = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def read_images(folder: Path, schema: DataSchema) -> Records:
    """Read a folder of images; a pixel becomes value / 255, and colours what the study's channels are.

    A file's path is not its identifier: a file that is renamed would be another record. The bytes of the
    decoded image are.

    Args:
        folder: a sub-folder for each class, by name or number, with the images in it.
        schema: of shape (1 or 3, height, width).

    Raises:
        DatasetError: the study has no images, or the folder cannot be listed.
        MissingExtraError: with the command that installs what is missing.

    Guarantees:
        An image of another size, one that cannot be decoded and one of no class are left out by themselves.
    """
    shape = schema.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DatasetError("a folder holds images; the study's input_shape is not (1 or 3, height, width)")
    if find_spec("PIL") is None:
        raise MissingExtraError('Pillow is not installed; run: pip install "fednas[images]"')
    classes = classes_by_name(schema)
    images: list[NDArray[np.float32]] = []
    labels: list[int] = []
    left_out = 0
    try:
        entries = [
            file for inner in sorted(folder.iterdir()) if inner.is_dir() for file in sorted(inner.iterdir())
        ]
    except OSError as error:
        raise DatasetError("cannot be read; expected a folder of folders, readable by this user") from error
    for file in entries:
        label = classes.get(file.parent.name)
        image = None if label is None else _decode(file, shape)
        if label is None or image is None:
            left_out += 1
            continue
        images.append(image)
        labels.append(label)
    x = np.array(images, dtype=np.float32).reshape(len(images), *shape)
    return Records(x=x, y=np.array(labels, dtype=np.int64), left_out=left_out)


def _decode(file: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """An image of the study's shape, or None if it is none."""
    from PIL import Image

    channels, height, width = shape
    try:
        if not file.is_file():  # a pipe would be waited for
            return None
        with Image.open(file, formats=_FORMATS) as image:
            if image.size != (width, height) or image.mode not in _MODES:  # before a pixel is decoded
                return None
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32)
    except Exception:  # noqa: BLE001  decoders raise anything, and one hostile image must not refuse the others
        return None
    return (pixels.reshape(height, width, channels).transpose(2, 0, 1) / np.float32(255.0)).astype(np.float32)
