"""The start of an embedded cluster on a machine that is too busy for Ray's own patience."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayjepa.config import resolve
from rayjepa.on_ray.cluster import STARTS, cluster

LATE = "The current node timed out during startup. This could happen because the GCS has become overloaded."


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """What each start of a Ray that is always too late leaves running: a child that knows the temp folder."""
    import ray

    left: list[subprocess.Popen[bytes]] = []

    def late(*, _temp_dir: str, **settings: object) -> None:
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", _temp_dir]))
        raise Exception(LATE)

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return left


def test_ray_that_starts_late_is_tried_again_and_leaves_no_process(
    starts: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    late = pytest.raises(RuntimeError, match=rf"in {STARTS} tries \(The current node timed out.*want to run on")
    with late, cluster(resolve("tiny", {"cluster.workers": 1}), logs=tmp_path):
        pass
    assert len(starts) == STARTS
    assert [child.wait(timeout=60) for child in starts] == [-9] * STARTS
    assert not any(Path(child.args[3]).exists() for child in starts)  # type: ignore[index]
