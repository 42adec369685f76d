"""Videos to index, and an index that takes note of what it looks at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from footage import make_video

from rayjepa.config import DataConfig
from rayjepa.data.columns import SCHEMA
from rayjepa.data.decoder import Decoder
from rayjepa.data.index.indexing import Indexed, update
from rayjepa.data.index.probing import Look, described
from rayjepa.data.index.shards import members

CFG = DataConfig(frames=4, fps=8.0, size_px=32, retries=0)
LOOK = Look(cfg=CFG)
Index = Callable[..., tuple[Indexed, list[str]]]


@pytest.fixture(scope="module", name="footage")
def fixture_footage(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos, no two alike."""
    folder = tmp_path_factory.mktemp("footage")
    return [make_video(folder / f"{k}.mp4", frames=12 + k) for k in range(3)]


@pytest.fixture(scope="module", name="decoder")
def fixture_decoder() -> Iterator[Decoder]:
    """One for all tests: its child takes longer to start than a test does."""
    with Decoder(CFG) as decoder:
        yield decoder


@pytest.fixture(name="folder")
def fixture_folder(footage: list[Path], tmp_path: Path) -> Path:
    """A folder of these videos and one file that is none."""
    for video in footage:
        place = tmp_path / "videos" / video.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(video.read_bytes())
    (tmp_path / "videos" / "none.mp4").write_bytes(b"no video")
    return tmp_path / "videos"


class Seen:
    """Looks at files in this thread, and takes note of their names."""

    def __init__(self, decoder: Decoder, look: Look) -> None:
        self.decoder, self.look = decoder, look
        self.names: list[str] = []

    def members(self, shards: pa.Table) -> Iterator[pa.Table]:
        yield from (members(shard=row.pop("uri"), nbytes=row.pop("bytes"), **row) for row in shards.to_pylist())

    def probed(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            self.names.append(Path(row["uri"]).name)
            yield pa.Table.from_pylist([described(row, self.decoder, self.look)], schema=SCHEMA)


@pytest.fixture(name="indexed")
def fixture_indexed(decoder: Decoder) -> Index:
    """Of sources and `out`, the outcome of an index and the names of the files that it has looked at."""

    def call(*sources: object, out: Path, look: Look = LOOK, **options: Any) -> tuple[Indexed, list[str]]:
        seen = Seen(decoder, look)
        return update([str(source) for source in sources], out, look=look, spread=seen, **options), sorted(seen.names)

    return call


def column(made: Indexed, name: str) -> dict[str, object]:
    uris = [Path(uri).name for uri in made.videos.column("uri").to_pylist()]
    return dict(zip(uris, made.videos.column(name).to_pylist(), strict=True))
