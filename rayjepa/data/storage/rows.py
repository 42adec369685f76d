"""A video out of a row of a Parquet file whose values are compressed: the last row group that was read is kept."""

import threading
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from rayjepa.data.clip import Place
from rayjepa.data.storage.faults import Changed
from rayjepa.data.storage.remote import filesystem_of, is_remote


class Rows:
    """For any number of threads; those that want the same row group wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: tuple[str, Any] | None = None
        self._group: tuple[tuple[str, str, int], int, Any] | None = None

    def cell(self, place: Place, *, timeout_s: float) -> bytes:
        """The video in `place.cell`, COLUMN/ROW.

        Raises:  Changed if the file has no such row, or another there; StorageError, OSError.
        """
        assert place.cell is not None
        column, _, row = place.cell.rpartition("/")
        with self._lock:
            first, values = self._values(place.file, column, int(row), timeout_s)
        value = values[int(row) - first].as_py()
        if value is None or len(value) != place.nbytes:
            size = "none" if value is None else len(value)
            raise Changed(
                f"{place.file}: changed since it was indexed: {size} bytes in cell {place.cell}, the manifest says "
                f"{place.nbytes}; index it again"
            )
        return value

    def _values(self, url: str, column: str, row: int, timeout_s: float) -> tuple[int, Any]:
        """The column of the row group that holds the row, and the number of its first."""
        if self._group is not None:
            (file, name, count), first, values = self._group
            if file == url and name == column and first <= row < first + count:
                return first, values
        parquet = self._opened(url, timeout_s)
        first = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if row < first + count:
                break
            first += count
        else:
            raise Changed(f"{url}: changed since it was indexed: {first} rows, the manifest says more; index it again")
        try:
            values = parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
            if pa.types.is_struct(values.type):  # named STRUCT.FIELD
                values = pa.chunked_array([part.flatten()[0] for part in values.chunks])
        except (pa.ArrowInvalid, KeyError) as error:
            raise Changed(
                f"{url}: row group {group} cannot be read ({str(error).splitlines()[0]}); index it again"
            ) from error
        self._group = ((url, column, count), first, values)
        return first, values

    def _opened(self, url: str, timeout_s: float) -> Any:
        if self._file is None or self._file[0] != url:
            filesystem, path = filesystem_of(url if is_remote(url) else f"file://{url}", timeout_s=timeout_s)
            try:
                parquet = pyarrow.parquet.ParquetFile(filesystem.open_input_file(path), pre_buffer=False)
            except pa.ArrowInvalid as error:
                raise Changed(
                    f"{url}: no Parquet file any more ({str(error).splitlines()[0]}); index it again"
                ) from error
            self._file = (url, parquet)
        return self._file[1]
