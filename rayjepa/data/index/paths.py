"""Many paths and URLs at once, as Arrow has them."""

import os
import posixpath
import re
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute

FILE = "file://"
REMOTE = r"^[a-z][a-z0-9+.-]*://"
"""What an address begins with; a path does not."""
_pc = cast("Any", pyarrow.compute)  # its functions are made at import time, unseen by a type checker


def resolved(names: pa.Array, base: str) -> pa.Array:
    """Names as absolute paths, those that are relative from `base`, a path or URL; URLs stay as they are."""
    names = _pc.if_else(_pc.starts_with(names, FILE), _pc.utf8_slice_codeunits(names, len(FILE)), names)
    remote = _pc.match_substring_regex(names, REMOTE)
    absolute = _pc.or_(remote, _pc.starts_with(names, "/"))
    joined = below(base.rstrip("/"), names)
    paths = _pc.if_else(absolute, names, joined)
    crooked = _pc.and_(_pc.match_substring_regex(paths, r"/\.{0,2}(/|$)"), _pc.invert(remote)).to_numpy(
        zero_copy_only=False
    )
    if crooked.any():  # only these need Python
        mended = [straight(path) for path in paths.filter(pa.array(crooked)).to_pylist()]
        paths = _pc.replace_with_mask(paths, pa.array(crooked), pa.array(mended, pa.large_string()))
    return paths


def below(folder: str, names: pa.Array, between: str = "/") -> pa.Array:
    """Names with a folder before each."""
    kind = pa.large_string()
    return _pc.binary_join_element_wise(pa.scalar(folder, kind), names, pa.scalar(between, kind))


def straight(path: str) -> str:
    """A path without . and .. and doubled slashes; of a URL, what comes after its bucket."""
    head = re.match(REMOTE + r"[^/]*", path)
    if head is None:
        return os.path.abspath(path)
    return head[0] + posixpath.normpath("/" + path[head.end() :].lstrip("/"))
