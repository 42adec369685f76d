"""What a run says of itself while it runs."""

import json
import logging
from pathlib import Path

import pytest

from rayjepa.cli.display import display
from rayjepa.config import resolve


def test_a_remark_is_said_once_and_survives_workers_that_start_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with display(resolve("tiny", {}), tmp_path) as refresh:
        for facts in ({}, {"ahead": "prefetch holds 1 s"}, {"ahead": "prefetch holds 1 s"}, {}, {"step": 4}):
            (tmp_path / "progress.json").write_text(json.dumps(facts))
            refresh()
    assert [record.getMessage() for record in caplog.records].count("prefetch holds 1 s") == 1
