"""`rayjepa VERB [--preset P] [key=value …]`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rayjepa import __version__
from rayjepa.config import describe, presets


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 the world failed, 2 the user's mistake, 130 stopped."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)  # argparse takes `key=value` words only where it first meets one
    if more and (not hasattr(args, "overrides") or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}"  # type: ignore[assignment]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return args.verb(args)
    except (ValueError, RuntimeError) as error:
        print(f"rayjepa: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:
        print(f"rayjepa: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rayjepa: stopped", file=sys.stderr)
        return 130


def overrides_from(words: Sequence[str]) -> dict[str, object]:
    """`key=value` words as a mapping. Raises ValueError for a word without `=`."""
    pairs: dict[str, object] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ValueError(f"{word!r} is not key=value; `rayjepa pretrain --help` lists the keys")
        pairs[key] = value
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rayjepa", description="Pretrain Joint-Embedding Predictive Architectures on video with Ray and DeepSpeed."
    )
    parser.add_argument("--version", action="version", version=f"rayjepa {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    pretrain = verbs.add_parser(
        "pretrain",
        help="train a model, or continue a run",
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrain.add_argument("--preset", help=f"a shipped preset ({', '.join(presets())}) or a YAML file; default demo")
    pretrain.add_argument(
        "--resume", metavar="RUN_DIR", type=Path, help="continue this run where its last checkpoint stands"
    )
    pretrain.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the list below")
    pretrain.set_defaults(verb=_pretrain)

    index = verbs.add_parser("index", help="probe videos into a manifest, one row each")
    index.add_argument("source", help="folder, glob, list (.txt, one path a line) or one video")
    index.add_argument("-o", "--out", type=Path, default=Path("manifest.parquet"), help="default manifest.parquet")
    index.add_argument(
        "--labels", type=Path, help="CSV with a column `file` and label columns; default SOURCE/labels.csv"
    )
    index.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="full: decode all frames once, mark what fails, count damage; default quick, one frame each",
    )
    index.add_argument("overrides", nargs="*", metavar="key=value", help="data.* keys, such as data.holdout=0.05")
    index.set_defaults(verb=_index)

    _add_transcode(
        verbs.add_parser("transcode", help="make videos anew, small and fast to decode, with their manifest")
    )

    report = verbs.add_parser("report", help="write the page of a run")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(verb=_report)

    runs = verbs.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    runs.set_defaults(verb=_runs)

    fuzz = verbs.add_parser("fuzz-decode", help="send damaged copies of videos through the stream, count their fates")
    fuzz.add_argument("--files", type=int, default=2000, metavar="N", help="copies; default 2000")
    fuzz.add_argument("--seed", type=int, default=0, help="of the damage; default 0")
    fuzz.add_argument("--keep", type=Path, metavar="DIR", help="keep copies here that ended a decoder's child")
    fuzz.add_argument("--again", type=Path, metavar="FILE", help="decode one kept copy once more, and nothing else")
    fuzz.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    fuzz.add_argument("overrides", nargs="*", metavar="key=value")
    fuzz.set_defaults(verb=_fuzz_decode)

    _add_bench(verbs.add_parser("bench", help="measure a part on this machine"))
    return parser


def _add_transcode(transcode: argparse.ArgumentParser) -> None:
    transcode.add_argument("source", help="manifest (.parquet), or what `rayjepa index` takes")
    transcode.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, empty, or to be continued")
    transcode.add_argument(
        "--short", type=int, default=288, metavar="PX", help="short side; never enlarged; default 288"
    )
    transcode.add_argument("--gop", type=int, default=16, help="frames from one key frame to the next; default 16")
    transcode.add_argument("--b-frames", type=int, default=7, help="frames between two that others need; default 7")
    transcode.add_argument("--crf", type=int, default=23, help="x264's quality, 0 to 51, lower is better; default 23")
    transcode.add_argument("--x264-preset", default="veryfast", help="effort of the encoder; default veryfast")
    transcode.add_argument("--tune", default="fastdecode", help="fastdecode or none; default fastdecode")
    transcode.add_argument("--labels", type=Path, help="as of `rayjepa index`, if the source is no manifest")
    transcode.add_argument("--clips", type=int, default=32, help="clips to measure the speed-up on; default 32")
    transcode.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.* and cluster.* keys, such as cluster.decoders=16"
    )
    transcode.set_defaults(verb=_transcode)


def _add_bench(bench: argparse.ArgumentParser) -> None:
    parts = bench.add_subparsers(title="parts", required=True, metavar="PART")

    feed = parts.add_parser("feed", help="decode alone, the stream, and a full run, in clips/s")
    feed.add_argument("--preset", default="demo")
    feed.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are printed")
    feed.add_argument("--clips", type=int, default=480, help="clips a round")
    feed.set_defaults(verb=_bench_feed)

    decode = parts.add_parser(
        "decode", help="clips per CPU second by codec, size and key frames, beside other libraries"
    )
    decode.add_argument(
        "--cells",
        metavar="NAMES",
        help="such as h264-360p-g60,hevc-*; default all 60; each is made once, in data.cache",
    )
    decode.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed")
    decode.add_argument("--clips", type=int, default=3, help="clips of each cell in a round")
    decode.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="interpreter that has tidy (PyAV and OpenCV), torchcodec or decord; default this one",
    )
    decode.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the figures")
    decode.set_defaults(verb=_bench_decode)

    soak = parts.add_parser(
        "soak", help="does a decoder leak: memory and descriptors over many small clips, good and bad"
    )
    soak.add_argument("--clips", type=int, default=50_000, help="default 50000")
    soak.set_defaults(verb=_bench_soak)
    for part in (feed, decode, soak):
        part.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
        part.add_argument("overrides", nargs="*", metavar="key=value")


def _keys() -> str:
    """Every key with type, default and one sentence."""
    lines = ["keys (YAML, command line and sweeps use the same; presets are listed by --preset):", ""]
    for knob in describe():
        default = "none" if knob.default is None else knob.default
        default = list(default) if isinstance(default, tuple) and "BlockConfig" not in knob.kind else default
        default = "V-JEPA's two" if "BlockConfig" in knob.kind else default
        lines += [f"  {knob.key}=<{knob.kind}>  (default {default})", f"      {knob.help}"]
    return "\n".join(lines)


def _pretrain(args: argparse.Namespace) -> int:
    from rayjepa.cli.pretrain import pretrain, resume

    pairs = overrides_from(args.overrides)
    if args.resume is None:
        return pretrain(args.preset or "demo", pairs)
    if args.preset:
        raise ValueError("--preset and --resume exclude each other: a resumed run keeps its configuration")
    return resume(args.resume, pairs)


def _index(args: argparse.Namespace) -> int:
    from rayjepa.cli.pretrain import indexed
    from rayjepa.config import resolve
    from rayjepa.data import manifest

    videos = indexed(
        args.source, resolve(None, overrides_from(args.overrides)).data, labels=args.labels, verify=args.verify
    )
    manifest.write(videos, args.out)
    print(f"{videos.summary()}\nwrote {args.out}")
    return 0


def _transcode(args: argparse.Namespace) -> int:
    from rayjepa.cli.transcode import transcode
    from rayjepa.data.recipe import Recipe

    recipe = Recipe(
        short_px=args.short, gop=args.gop, b_frames=args.b_frames, crf=args.crf, preset=args.x264_preset, tune=args.tune
    )
    return transcode(
        args.source, overrides_from(args.overrides), out=args.out, recipe=recipe, labels=args.labels, clips=args.clips
    )


def _report(args: argparse.Namespace) -> int:
    from rayjepa.report import printed, read_digest, write_report

    path = write_report(args.run_dir)
    print(f"{printed(read_digest(args.run_dir))}\n{path}")
    return 0


def _runs(args: argparse.Namespace) -> int:
    from rayjepa.report import list_runs, runs_table

    print(runs_table(list_runs(args.folder)))
    return 0


def _fuzz_decode(args: argparse.Namespace) -> int:
    from rayjepa.cli.fuzz import fuzz_decode

    return fuzz_decode(
        overrides_from(args.overrides),
        files=args.files,
        seed=args.seed,
        keep=args.keep,
        again=args.again,
        out=args.json,
    )


def _bench_feed(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench import feed

    return feed(args.preset, overrides_from(args.overrides), rounds=args.rounds, clips=args.clips, out=args.json)


def _bench_decode(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench import decode

    return decode(
        overrides_from(args.overrides),
        cells=args.cells,
        peers=args.peer,
        rounds=args.rounds,
        clips=args.clips,
        out=args.json,
        plot=args.plot,
    )


def _bench_soak(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench import soak

    return soak(overrides_from(args.overrides), clips=args.clips, out=args.json)
