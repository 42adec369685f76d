"""Lists of files: .txt, .csv, .parquet and .npy, as addresses with their labels, without a Python object for each."""

import io
import posixpath
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from rayjepa.data.columns import SCHEMA
from rayjepa.data.index.endings import LISTS, ending
from rayjepa.data.index.labels import PREFIX
from rayjepa.data.index.paths import resolved
from rayjepa.data.lookup import whole

PATHS = ("path", "uri", "file", "video")
"""Names, in any case, of the column that names the files; the first that is there counts."""
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a list names, in its order."""

    uris: pa.Array
    """Absolute paths or URLs, as large_string."""
    labels: dict[str, pa.Array] = field(default_factory=dict[str, pa.Array])
    """By name with the prefix."""
    source: pa.Array | None = None


def read_list(name: str, content: pa.Buffer) -> Named:
    """What the list `name`, with these bytes, names: by its extension.

    Relative names are taken from the list's own folder.
    Raises:  ValueError, one sentence with the remedy, if it is of another form or names nothing.
    """
    base = posixpath.dirname(name)
    match ending(name):
        case "txt":
            found = Named(uris=_comments_out(_lines(name, content, "it needs one path a line")))
        case "csv":
            found = _from_csv(name, content)
        case "npy":
            found = _from_npy(name, content)
        case "parquet":
            found = _from_table(f"list {name}", pyarrow.parquet.ParquetFile(content).read())
        case other:
            raise ValueError(f"list {name}: .{other} is none of the forms that are read: .{', .'.join(LISTS)}")
    if not len(found.uris):
        raise ValueError(f"list {name} names no file; it needs one path a line, relative to {base} or absolute")
    if unnamed := len(found.uris) - (_pc.sum(_pc.not_equal(found.uris, "")).as_py() or 0):
        raise ValueError(f"list {name}: {unnamed} of {len(found.uris)} rows have no path; name a file in each, or none")
    return Named(uris=resolved(found.uris, base), labels=found.labels, source=found.source)


def _lines(name: str, content: pa.Buffer, needs: str) -> pa.Array:
    """Lines that are not empty, without the space around them."""
    data = memoryview(content)
    data = data[3:] if bytes(data[:3]) == b"\xef\xbb\xbf" else data
    text = pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, len(data)], np.int64)), pa.py_buffer(data))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"list {name} is not UTF-8 text ({error}); {needs}") from None
    lines = _pc.utf8_trim_whitespace(_pc.split_pattern(text, "\n").flatten())
    return lines.filter(_pc.not_equal(lines, ""))


def _comments_out(lines: pa.Array) -> pa.Array:
    return lines.filter(_pc.invert(_pc.starts_with(lines, "#")))


def _from_csv(name: str, content: pa.Buffer) -> Named:
    """V-JEPA's form, or that with a header."""
    forms = (
        "it needs lines `path label` with a number as label (V-JEPA's form, no header), or commas and a header with "
        f"one of the columns {', '.join(PATHS)}"
    )
    lines = _lines(name, content, forms)
    if not len(lines):
        return Named(uris=lines)
    first = lines[0].as_py()
    if set(PATHS) & {word.strip().strip('"').lower() for word in first.split(",")}:
        try:
            table: Any = pyarrow.csv.read_csv(
                pa.BufferReader(content), parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
            )
        except pa.ArrowInvalid as error:
            raise ValueError(f"list {name} cannot be read as CSV: {error}") from None
        return _from_table(f"list {name}", table)
    cut = r"^(?P<path>.*?)::(?P<label>[^:]*)$" if "::" in first else r"^(?P<path>.*\S)\s+(?P<label>\S+)$"
    parts = _pc.extract_regex(lines, cut)
    labels = _numbers(_pc.struct_field(parts, [1]))
    if parts.null_count or labels is None:
        raise ValueError(f"list {name} begins with {first!r}: {forms}. A list of paths alone is a .txt")
    paths = _pc.struct_field(parts, [0])
    quoted = _pc.match_substring_regex(paths, '^".*"$')
    plain = _pc.replace_substring(_pc.utf8_slice_codeunits(paths, 1, -1), '""', '"')
    return Named(uris=_pc.if_else(quoted, plain, paths), labels={f"{PREFIX}label": labels})


def _numbers(words: pa.Array) -> pa.Array | None:
    """Words as whole numbers, else as numbers; none: a word is no number."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return words.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _from_npy(name: str, content: pa.Buffer) -> Named:
    remedy = "write it with np.save(FILE, np.array(paths, dtype=str))"
    if not bytes(memoryview(content)[:6]) == b"\x93NUMPY":
        raise ValueError(f"list {name} is no .npy file; {remedy}")
    try:
        array: Any = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"list {name} holds Python objects, and reading those could run any code; {remedy}"
            ) from None
        raise ValueError(f"list {name} cannot be read as .npy ({error}); {remedy}") from None
    if array.dtype.names:
        columns = {column: pa.array(array[column]) for column in array.dtype.names}
        return _from_table(f"list {name}", pa.table(columns))
    if array.dtype.kind not in "US" or array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 2):
        raise ValueError(f"list {name} has {array.dtype} of shape {array.shape}; {remedy}")
    pairs = array.reshape(-1, 1) if array.ndim < 2 else array
    paths = pa.array(np.char.decode(pairs[:, 0], "utf-8") if array.dtype.kind == "S" else pairs[:, 0])
    if pairs.shape[1] == 1:
        return Named(uris=paths.cast(pa.large_string()))
    words = pa.array(pairs[:, 1].astype(str))
    numbers = _numbers(words)
    return Named(uris=paths.cast(pa.large_string()), labels={f"{PREFIX}label": words if numbers is None else numbers})


def _from_table(what: str, table: pa.Table) -> Named:
    """Columns: one of PATHS, maybe `source`; the others are labels."""
    by_small = {column.lower(): column for column in reversed(table.column_names)}
    key = next((by_small[column] for column in PATHS if column in by_small), None)
    if key is None or len(set(table.column_names)) < table.num_columns:
        raise ValueError(
            f"{what} has columns {', '.join(table.column_names)}; it needs one that names the files "
            f"({', '.join(PATHS)}), or of a Parquet file one that holds their bytes, and none twice"
        )
    if not is_text(table.column(key).type) and not pa.types.is_null(table.column(key).type):
        raise ValueError(f"{what}: column {key} is {table.column(key).type} and not text")
    rest = table.drop_columns([key])
    source, labels = labels_of(rest)
    return Named(uris=whole(table.column(key).cast(pa.large_string())), labels=labels, source=source)


def labels_of(table: pa.Table) -> tuple[pa.Array | None, dict[str, pa.Array]]:
    """Column `source`, if it is there, and the others that hold one number or text a row, as labels."""
    columns = {name: table.column(name) for name in table.column_names}
    columns = {n: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for n, c in columns.items()}
    source = columns.pop("source", None)
    kept = {
        PREFIX + name.removeprefix(PREFIX): whole(column) for name, column in columns.items() if _is_scalar(column.type)
    }
    return None if source is None else whole(source.cast(SCHEMA.field("source").type)), kept


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can name files."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    return is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
