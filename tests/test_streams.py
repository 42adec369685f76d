"""Streams: their shares of steps, their samples, and a run that has videos of two lengths and images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_clips import made_stream
from pictures import picture, png
from test_tape import manifest

from rayjepa.cli.derived import warnings_of
from rayjepa.config import ConfigError, RunConfig, phases_of, quantum_of, resolve, settled, streams_of
from rayjepa.data import manifest as manifests
from rayjepa.data import synthetic
from rayjepa.data.columns import SCHEMA
from rayjepa.data.decoders import Decoders
from rayjepa.data.index import indexing
from rayjepa.data.manifest import Manifest
from rayjepa.data.merge import merged
from rayjepa.data.tape import Tape, micro_batch_ids
from rayjepa.health.held_out import HeldOut
from rayjepa.model import build
from rayjepa.train.engine import Step
from rayjepa.train.history import merge
from rayjepa.train.loop import train
from rayjepa.train.plain import PlainEngine
from rayjepa.train.session import local_batches

# ---------------------------------------------------------------- configuration

VIDEO = {"name": "video", "weight": 2, "set": {}}
SHORT = {"name": "short", "weight": 1, "set": {"data.frames": 2, "data.fps": 4.0}}
STILLS = {"name": "images", "weight": 1, "set": {"data": {"frames": 1, "videos": "/images"}, "masks.kind": "ijepa"}}


def run_of(*streams: object, **overrides: object) -> RunConfig:
    base = {"streams": streams or [VIDEO, SHORT, STILLS], "train.clips": 16, "train.accumulation": 4, "train.steps": 30}
    return resolve("tiny", base | {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_quantum_is_what_the_ranks_take_at_once_if_it_is_not_set() -> None:
    assert quantum_of(run_of()) == 4
    assert quantum_of(run_of(data__quantum=8)) == 8
    assert settled(run_of()).data.quantum == 4
    assert {phase.run.data.quantum for phase in phases_of(settled(run_of()))} == {4}
    assert settled(resolve("tiny", {})) == resolve("tiny", {})


def test_streams_that_take_turns_over_steps_are_warned_of() -> None:
    (turns,) = [line for line in warnings_of(run_of(train__accumulation=1)) if "streams" in line]
    assert "a step of 16 clips is 1 x data.quantum=16, and there are 3 streams: they take turns over steps" in turns
    assert not any("streams" in line for run in (run_of(), resolve("tiny", {})) for line in warnings_of(run))


def test_all_phases_have_the_quantum_of_the_first() -> None:
    last = {"name": "last", "steps": 2, "set": {"train.accumulation": 8}}
    first, second = phases_of(run_of(phases=[last]))
    assert (quantum_of(first.run), quantum_of(second.run)) == (4, 4)
    with pytest.raises(ConfigError, match=r"phases\[last\]\.set: data\.quantum=4 is not a multiple of the 8 clips"):
        run_of(phases=[last | {"set": {"train.accumulation": 2}}])


@pytest.mark.parametrize(
    ("streams", "overrides", "message"),
    [
        (
            [VIDEO],
            {"data.quantum": 6},
            r"data\.quantum=6 is not a multiple of the 4 clips that 2 worker\(s\) x micro-b",
        ),
        (
            [VIDEO],
            {"data.quantum": 12},
            r"train\.clips=16 is not a multiple of data\.quantum=12; nearest: train\.clips",
        ),
        ([VIDEO, VIDEO], {}, "streams have the names video, video"),
        ([VIDEO | {"weight": 0}], {}, r"streams\[\]\.weight=0"),
        ([VIDEO | {"name": "a/b"}], {}, r"streams\[\]\.name='a/b' must be a word"),
        ([VIDEO | {"set": {"data.quantum": 4}}], {}, r"streams\[video\]\.set: data\.quantum is one number for all"),
        ([VIDEO | {"set": {"optim.lr": 1}}], {}, r"optim\.lr is not a knob of data, views or masks"),
        ([VIDEO | {"set": {"data.frames": 3}}], {}, r"streams\[video\]\.set: data\.frames=3 is neither 1 \(images\)"),
    ],
)
def test_streams_that_do_not_fit_are_refused_with_the_numbers(
    streams: list[object], overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("tiny", {"streams": streams, "train.clips": 16, "train.accumulation": 4, **overrides})


# ---------------------------------------------------------------- specs


def two_sources() -> Manifest:
    """Ten videos of the run, held out from the ninth on, and five images of stream images."""
    images = manifest([0.04] * 5).table
    images = images.set_column(
        SCHEMA.get_field_index("container"), SCHEMA.field("container"), pa.array(["png_pipe"] * 5)
    )
    return merged([(None, manifest([5.0] * 10, holdout={8, 9})), ("images", Manifest(images))])


def test_each_streams_samples_are_of_its_own_knobs_and_source_in_ranges_of_their_own() -> None:
    run = run_of()
    tape = Tape(run, two_sources())
    for step in range(8):
        specs = [tape.spec(i) for i in range(16 * step, 16 * step + 16)]
        assert [spec.stream for spec in specs] == ["video"] * 8 + ["short"] * 4 + ["images"] * 4
        assert [spec.frames for spec in specs] == [4] * 8 + [2] * 4 + [1] * 4
        assert all((spec.video >= 10) == (spec.stream == "images") for spec in specs)
    assert tape.videos == 8 + 8 + 5


def test_every_video_of_a_streams_pass_comes_once_in_an_order_of_its_own() -> None:
    tape = Tape(run_of(), two_sources())
    drawn: dict[str, list[int]] = {"video": [], "short": [], "images": []}
    for index in range(480):
        spec = tape.spec(index)
        drawn[spec.stream].append(spec.video)
    for name, videos in (("video", range(8)), ("short", range(8)), ("images", range(10, 15))):
        passes = [drawn[name][at : at + len(videos)] for at in range(0, len(drawn[name]), len(videos))]
        assert all(sorted(one) == list(videos) for one in passes[:-1])
        assert len({tuple(one) for one in passes}) == len(passes)
    assert drawn["video"][:8] != drawn["short"][:8]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (4, 4), (2, 8), (1, 16)])
def test_samples_depend_neither_on_the_world_nor_on_micro_batches_once_the_quantum_is_settled(
    world: int, accumulation: int
) -> None:
    table = two_sources()
    other = run_of(cluster__workers=world, train__accumulation=accumulation, data__quantum=4)
    ours, theirs = Tape(other, table), Tape(run_of(), table)
    assert all(ours.spec(i, i % 3) == theirs.spec(i, i % 3) for i in range(0, 480, 7))


def test_every_micro_batch_is_of_one_stream_and_all_ranks_have_the_same_stream_at_once() -> None:
    run = run_of(VIDEO, SHORT | {"weight": 1.3}, STILLS, data__quantum=8, train__clips=24, train__accumulation=6)
    tape = Tape(run, two_sources())
    for step in range(20):
        for micro in range(6):
            ids = [i for rank in (0, 1) for i in micro_batch_ids(run, world=2, rank=rank, step=step, micro=micro)]
            assert len({tape.spec(i).stream for i in ids}) == 1


def test_the_samples_of_a_later_phase_go_on_where_those_of_the_first_ended() -> None:
    run = run_of(phases=[{"name": "last", "steps": 10, "set": {"data.size_px": 64}}])
    first, last = phases_of(run)
    tapes = [Tape(phase.run, two_sources(), first=16 * phase.first) for phase in (first, last)]
    whole = Tape(run_of(train__steps=40), two_sources())
    assert tapes[1].samples == range(480, 640)
    for index in (480, 543, 639):
        ours, theirs = tapes[1].spec(index), whole.spec(index)
        assert (ours.video, ours.stream, ours.mask_seed) == (theirs.video, theirs.stream, theirs.mask_seed)
        assert ours.window.size_px == 64


def test_a_single_stream_named_as_the_default_is_the_run_without_streams() -> None:
    plain, one = resolve("tiny", {}), resolve("tiny", {"streams": [VIDEO]})
    table = manifest([5.0 + i for i in range(10)])
    assert [Tape(one, table).spec(i) for i in range(32)] == [Tape(plain, table).spec(i) for i in range(32)]
    assert streams_of(plain)[0].run == plain


def test_health_looks_at_the_first_stream_of_videos() -> None:
    tape = Tape(run_of(STILLS, SHORT, VIDEO), two_sources())
    assert tape.examined.name == "short"
    assert {spec.video for spec in tape.held_out(2)} == {8, 9}
    assert Tape(run_of(STILLS), two_sources()).examined.name == "images"


def test_a_stream_without_videos_is_named() -> None:
    with pytest.raises(ValueError, match="stream images: none of the manifest's 0 videos is usable"):
        Tape(run_of(), manifest([5.0] * 4))


# ---------------------------------------------------------------- one manifest of several sources


def test_what_is_held_out_of_one_source_is_held_out_of_all() -> None:
    one, other = manifest([5.0] * 4, holdout={1}), manifest([5.0] * 3)
    both = merged([(None, one), ("other", other)])
    assert both.column("split").to_pylist() == ["train", "holdout", "train", "train", "train", "holdout", "train"]
    assert both.column("stream").to_pylist() == [None] * 4 + ["other"] * 3
    assert both.column("stream").to_pylist() == [None] * 4 + ["other"] * 3
    assert both.fingerprint != merged([(None, one), ("another", other)]).fingerprint


def test_labels_of_two_sources_stand_side_by_side_unless_their_types_differ() -> None:
    labelled = Manifest(manifest([5.0] * 2).table.append_column("label_a", pa.array([1, 2])))
    assert merged([(None, labelled), ("b", manifest([5.0]))]).column("label_a").to_pylist() == [1, 2, None]
    text = Manifest(manifest([5.0]).table.append_column("label_a", pa.array(["x"])))
    with pytest.raises(ValueError, match=r"labels of the streams' videos cannot stand in one manifest: .*label_a"):
        merged([(None, labelled), ("b", text)])


NEW = ("shard", "offset", "cell", "modified", "hash", "source", "head", "tail", "key_s", "key_bytes")
"""Columns of version 4."""


def test_a_manifest_of_before_streams_is_read_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    table = manifest([5.0, 6.0, 7.0], holdout={1})
    old = table.table.drop_columns([*NEW, "stream"]).replace_schema_metadata({"rayjepa.manifest": "2"})
    pq.write_table(old, tmp_path / "old.parquet")
    found = manifests.read(tmp_path / "old.parquet")
    assert found == table
    assert found.fingerprint == table.fingerprint == "c56f34d3d37fed3cb023c736d5c6fd85"


def test_what_version_3_calls_a_source_is_a_stream(tmp_path: Path) -> None:
    both = merged([(None, manifest([5.0] * 4)), ("other", manifest([5.0] * 3))])
    names = ["source" if name == "stream" else name for name in both.table.column_names if name not in NEW]
    old = both.table.drop_columns(NEW).rename_columns(names).replace_schema_metadata({"rayjepa.manifest": "3"})
    pq.write_table(old, tmp_path / "old.parquet")
    found = manifests.read(tmp_path / "old.parquet")
    assert found == both
    assert found.fingerprint == both.fingerprint


# ---------------------------------------------------------------- a run


class Looking(PlainEngine):
    """A plain engine that notes which parameters have a gradient at each step."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run, build(run), device=torch.device("cpu"))
        self.seen: list[set[str]] = []

    def step(self, **how: object) -> Step:
        parameters = self.jepa.named_parameters()
        self.seen.append({name for name, p in parameters if p.grad is not None and p.grad.abs().sum() > 0})
        return super().step(**how)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Manifest]:
    """A run of 4-frame clips, 2-frame clips and images, and what it draws from."""
    home = tmp_path_factory.mktemp("streams")
    for number in range(5):
        (home / f"{number}.png").write_bytes(png(picture()[: 40 + number]))
    videos = synthetic.make(home / "cache", 3, processes=1)
    stills = STILLS | {"set": {"data": {"frames": 1, "videos": str(home)}, "masks.kind": "ijepa"}}
    options = {"cluster.workers": 0, "train.engine": "plain", "masks.ijepa.min_context": 2, "health.clips": 4}
    run = resolve(
        "tiny",
        {"data.videos": str(videos), "streams": [VIDEO, SHORT, stills], "train.steps": 3, "train.clips": 8, **options}
        | {"train.accumulation": 4, "model.width": 12, "report.every_steps": 3},
    )
    parts = [(None, str(videos)), ("images", f"{home}/*.png")]
    return run, merged([(name, indexing.index(source, cfg=run.data, processes=1)) for name, source in parts])


def test_a_run_of_videos_of_two_lengths_and_images_trains_every_sample_and_both_tokenisers(
    site: tuple[RunConfig, Manifest],
) -> None:
    run, table = site
    engine, tape, readings, ids = Looking(run), Tape(run, table), [], []
    with Decoders(run) as decoders:
        batches = list(local_batches(run, tape, decoders, start=0))
    for clips in batches:
        ids += [[int(i), int(i) + 1] for i in clips.index]
        assert clips.pixels.shape == (2, clips.specs[0].nbytes)
        assert {spec.attempt for spec in clips.specs} == {0}
    assert merge(ids) == [[0, 24]]
    assert [b.specs[0].stream for b in batches] == ["video", "video", "short", "images"] * 3
    assert train(engine, batches, run, start=0, report=lambda metrics, _: readings.append(metrics)) == 3
    tokenisers = {name for name, _ in engine.jepa.named_parameters() if "patch_embed" in name}
    assert {"encoder.patch_embed.proj.weight", "encoder.patch_embed_image.proj.weight"} < tokenisers
    # The first step's gradient of a mask token that starts at zero is not zero, and that of all others neither.
    assert all(seen == {name for name, _ in engine.jepa.named_parameters()} for seen in engine.seen)
    (metrics,) = readings  # of all three steps
    each = [metrics[f"loss/{name}_latent"] for name in ("video", "video", "short", "images")]
    assert metrics["loss/latent"] == pytest.approx(sum(each) / 4, rel=1e-6)
    assert {"loss/video_mask0", "loss/short_mask1", "loss/images_target3"} < set(metrics)
    assert "loss/mask0" not in metrics


def test_held_out_clips_of_a_run_with_streams_say_whose_they_are(site: tuple[RunConfig, Manifest]) -> None:
    run, table = site
    engine = Looking(run)
    held_out = HeldOut(run, Tape(run, table), rank=0, world=1, device=torch.device("cpu"))
    assert held_out.stream == "video"
    assert held_out.examine(engine.target)["collapse/rankme"] > 1


def test_a_run_without_streams_names_its_metrics_as_ever() -> None:
    run = resolve("tiny", {"cluster.workers": 0, "train.steps": 1})
    seen: list[dict[str, float | int]] = []
    engine = PlainEngine(run, build(run), device=torch.device("cpu"))
    train(engine, made_stream(run), run, start=0, report=lambda metrics, _: seen.append(metrics))
    assert {key for key in seen[0] if key.startswith("loss/")} == {"loss/latent", "loss/mask0", "loss/mask1"}
