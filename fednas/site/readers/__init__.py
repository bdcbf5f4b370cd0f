"""One reader a kind of data: whatever the kind, the same records come out, and no record refuses a file."""

from fednas.site.readers.arrays import read_archive, read_function
from fednas.site.readers.images import read_images
from fednas.site.readers.records import Records
from fednas.site.readers.tables import read_csv, read_parquet

__all__ = ["Records", "read_archive", "read_csv", "read_function", "read_images", "read_parquet"]
