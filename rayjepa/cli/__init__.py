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
    index.add_argument("overrides", nargs="*", metavar="key=value", help="data.* keys, such as data.holdout=0.05")
    index.set_defaults(verb=_index)

    report = verbs.add_parser("report", help="write the page of a run")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(verb=_report)

    runs = verbs.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    runs.set_defaults(verb=_runs)

    bench = verbs.add_parser("bench", help="measure a part on this machine")
    bench.add_argument("part", choices=["feed"], help="feed: decode alone, the stream, and a full run, in clips/s")
    bench.add_argument("--preset", default="demo")
    bench.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are printed")
    bench.add_argument("--clips", type=int, default=480, help="clips a round")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    bench.add_argument("overrides", nargs="*", metavar="key=value")
    bench.set_defaults(verb=_bench)
    return parser


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

    videos = indexed(args.source, resolve(None, overrides_from(args.overrides)).data, labels=args.labels)
    manifest.write(videos, args.out)
    print(f"{videos.summary()}\nwrote {args.out}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from rayjepa.report import write_report

    print(write_report(args.run_dir))
    return 0


def _runs(args: argparse.Namespace) -> int:
    from rayjepa.report import list_runs, runs_table

    print(runs_table(list_runs(args.folder)))
    return 0


def _bench(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench import feed

    return feed(args.preset, overrides_from(args.overrides), rounds=args.rounds, clips=args.clips, out=args.json)
