"""The words of the command line: verbs, their options, and their help. Imports nothing slow."""

import argparse
from pathlib import Path

from rayjepa import __version__
from rayjepa.cli.bench_words import add_bench
from rayjepa.config import describe, models, presets
from rayjepa.config.space import spaces


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="rayjepa", description="Pretrain Joint-Embedding Predictive Architectures on video with Ray and DeepSpeed."
    )
    top.add_argument("--version", action="version", version=f"rayjepa {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    _add_pretrain(
        verbs.add_parser(
            "pretrain",
            help="train a model, or continue a run",
            epilog=_keys(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_index(verbs.add_parser("index", help="probe videos and images into a manifest, one row each"))
    _add_transcode(
        verbs.add_parser("transcode", help="make videos anew, small and fast to decode, with their manifest")
    )

    _add_import(verbs.add_parser("import", help="take weights of Meta's or Hugging Face's over, to begin a run with"))
    _add_export(verbs.add_parser("export", help="write a run's weights for transformers, Meta's code or torch.export"))

    report = verbs.add_parser("report", help="write the page of a run")
    report.add_argument("run_dir", type=Path)
    report.set_defaults(verb="report")

    runs = verbs.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    runs.set_defaults(verb="runs")

    _add_sweep(verbs.add_parser("sweep", help="search a space of knobs by a held-out health metric"))
    _add_plan(verbs.add_parser("plan", help="what a run will need: memory, FLOPs, decode cores, hours; starts nothing"))
    _add_doctor(
        verbs.add_parser(
            "doctor",
            help="is this machine, or a cluster, fit for a run?",
            epilog="Exit status: 0 all is ok, 3 warnings only, 1 an error, 2 a mistake in the words, 130 stopped.",
        )
    )
    _add_submit(verbs.add_parser("submit", help="run a verb as a Ray job, after checking what usually goes wrong"))
    _add_job(verbs.add_parser("job", help="be a Ray job: what `rayjepa submit` sends to the cluster"))

    _add_fuzz(
        verbs.add_parser("fuzz-decode", help="send damaged copies of videos through the stream, count their fates")
    )
    add_bench(verbs.add_parser("bench", help="measure a part on this machine"))
    return top


def _add_pretrain(pretrain: argparse.ArgumentParser) -> None:
    pretrain.add_argument("--preset", help=f"a shipped preset ({', '.join(presets())}) or a YAML file; default demo")
    pretrain.add_argument(
        "--resume", metavar="RUN_DIR", type=Path, help="continue this run where its last checkpoint stands"
    )
    pretrain.add_argument(
        "--or-resume", action="store_true", help="if out/name exists with this very configuration, continue it"
    )
    pretrain.add_argument(
        "--accept-manifest",
        metavar="FILE",
        type=Path,
        help="with --resume: draw from this manifest from the next step on; says what differs",
    )
    pretrain.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the list below")
    pretrain.set_defaults(verb="pretrain")


def _add_index(index: argparse.ArgumentParser) -> None:
    index.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder, glob, list (.txt, .csv, .parquet, .npy), shard (.tar, .parquet with bytes) or file, here or at a "
        "URL (s3://, gs://, all that fsspec knows); NAME=SOURCE names its rows, for the weights in data.sources",
    )
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
    index.add_argument(
        "--duplicates",
        choices=("keep", "drop"),
        default="keep",
        help="drop: of files with the same bytes the first alone is used; default keep, and say how many there are",
    )
    index.add_argument("--no-hash", action="store_true", help="do not read files whole to find duplicates")
    index.add_argument(
        "--fresh", action="store_true", help="look at every file; default those that OUT does not know as they are now"
    )
    index.add_argument("overrides", nargs="*", metavar="key=value", help="data.* keys, such as data.holdout=0.05")
    index.set_defaults(verb="index")


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
    transcode.set_defaults(verb="transcode")


def _add_import(taken: argparse.ArgumentParser) -> None:
    taken.add_argument(
        "source", type=Path, help="a .pt or .pth.tar file of Meta's, a Hugging Face folder, a run or a checkpoint"
    )
    taken.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    taken.add_argument(
        "--weights", choices=("target", "context"), help="keep the moving average or the other encoder; default both"
    )
    taken.add_argument("--no-predictor", action="store_true", help="leave the predictor behind")
    taken.add_argument("--heads", type=int, metavar="N", help="attention heads, which no file of Meta's says")
    taken.add_argument("--predictor-heads", type=int, metavar="N", help="of the predictor")
    taken.add_argument(
        "--position", choices=("rope", "sincos"), help="default sincos if a file of Meta's has pos_embed, else rope"
    )
    taken.add_argument("--frames", type=int, metavar="T", help="frames a clip that a file of Meta's was trained on")
    taken.add_argument("--size", type=int, metavar="PX", help="side of the clip in pixels")
    taken.set_defaults(verb="import")


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("source", type=Path, help="a run, a checkpoint, or what `rayjepa import` takes or wrote")
    export.add_argument("--to", choices=("hf", "meta", "torch"), required=True, help="transformers, Meta, torch.export")
    export.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    export.add_argument(
        "--weights",
        choices=("target", "context"),
        help="the moving average or the context encoder; default target, and for meta each under its own name",
    )
    export.add_argument(
        "--mask-token",
        type=int,
        metavar="N",
        help="put this mask token of the predictor in all places; default each in its own, and token 0 in the others",
    )
    export.add_argument(
        "--input", choices=("views", "uint8"), default="views", help="of torch: normalised clips (views) or bytes"
    )
    export.set_defaults(verb="export")


def _add_sweep(sweep: argparse.ArgumentParser) -> None:
    sweep.add_argument("--preset", help=f"a shipped preset ({', '.join(presets())}) or a YAML file; default demo")
    sweep.add_argument(
        "--space", help=f"a shipped space ({', '.join(spaces())}) or a YAML file: knobs, ranges, metric; default demo"
    )
    sweep.add_argument("--trials", type=int, metavar="N", help="trials in all; default the space's")
    sweep.add_argument("--concurrent", type=int, metavar="N", help="trials at once; default the space's")
    sweep.add_argument(
        "--metric",
        metavar="NAME",
        help="score: collapse/rankme, collapse/std_mean or collapse/std_min on held-out clips, higher is better; never "
        "a train loss, which a collapse makes lowest; default the space's",
    )
    sweep.add_argument("--resume", metavar="SWEEP_DIR", type=Path, help="continue a sweep; finished trials stay")
    sweep.add_argument("overrides", nargs="*", metavar="key=value", help="any key of `rayjepa pretrain --help`")
    sweep.set_defaults(verb="sweep")


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("--preset", help=f"a shipped preset ({', '.join(presets())}) or a YAML file; default demo")
    plan.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="model FLOPs utilisation; default 0.4")
    plan.add_argument("--gpu", default="h100", metavar="NAME", help="whose peak FLOPs and memory; default h100")
    plan.add_argument("--price", type=float, metavar="USD", help="of one GPU for an hour: adds the cost")
    plan.add_argument(
        "--clips-per-core",
        type=float,
        metavar="N",
        help="clips/s that one core decodes, as `rayjepa bench decode` prints; default that of H.264 360p here",
    )
    plan.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="any key of `rayjepa pretrain --help`")
    plan.set_defaults(verb="plan")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--preset", help="also check what this preset needs; default demo")
    doctor.add_argument("--address", metavar="HOST:PORT", help="Ray cluster to examine; default RAY_ADDRESS, else none")
    doctor.add_argument("--storage", metavar="FOLDER", help="where runs are to be written; default the knob `out`")
    doctor.add_argument("--insecure", action="store_true", help="a cluster that answers without a token is a warning")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="also write the findings here")
    doctor.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="any key of `rayjepa pretrain --help`; or the two words `feed RUN_DIR`: what bounded that run, and what "
        "to turn",
    )
    doctor.set_defaults(verb="doctor")


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--address", metavar="URL", help="of the dashboard; default RAY_API_SERVER_ADDRESS, else 8265")
    submit.add_argument("--id", metavar="NAME", help="submission id; default verb, date and time")
    submit.add_argument("--working-dir", type=Path, metavar="DIR", help="files that the job needs; default none")
    submit.add_argument("--print", action="store_true", help="print the `ray job submit` line and stop")
    submit.add_argument("--no-wait", action="store_true", help="do not follow the job's output")
    submit.add_argument("job", choices=("pretrain", "sweep", "index"), help="the verb to run on the cluster")
    submit.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="its options and key=value words")
    submit.set_defaults(verb="submit")


def _add_job(job: argparse.ArgumentParser) -> None:
    job.add_argument("job", choices=("pretrain", "sweep", "index"), help="the verb to run on this cluster")
    job.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="its options and key=value words")
    job.set_defaults(verb="job")


def _add_fuzz(fuzz: argparse.ArgumentParser) -> None:
    fuzz.add_argument("--files", type=int, default=2000, metavar="N", help="copies; default 2000")
    fuzz.add_argument("--seed", type=int, default=0, help="of the damage; default 0")
    fuzz.add_argument("--keep", type=Path, metavar="DIR", help="keep copies here that ended a decoder's child")
    fuzz.add_argument("--again", type=Path, metavar="FILE", help="decode one kept copy once more, and nothing else")
    fuzz.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    fuzz.add_argument("overrides", nargs="*", metavar="key=value")
    fuzz.set_defaults(verb="fuzz_decode")


def _keys() -> str:
    """Every key with type, default and one sentence."""
    lines = ["keys (YAML, command line and sweeps use the same; presets are listed by --preset):", ""]
    lines += [f"  model=<size>  ({', '.join(models())}, or a YAML file)", "      The keys of model.* of that size."]
    for knob in describe():
        default = "none" if knob.default is None else knob.default
        default = list(default) if isinstance(default, tuple) and "BlockConfig" not in knob.kind else default
        default = "V-JEPA's two" if "BlockConfig" in knob.kind else default
        lines += [f"  {knob.key}=<{knob.kind}>  (default {default})", f"      {knob.help}"]
    return "\n".join(lines)
