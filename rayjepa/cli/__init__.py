"""`rayjepa VERB [--preset P] [key=value …]`."""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rayjepa.cli.benches import BENCHES
from rayjepa.cli.pairs import overrides_from
from rayjepa.cli.parser import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 1 the world failed, 2 the user's mistake, 130 stopped."""
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}"  # type: ignore[assignment]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    return guarded(lambda: VERBS[args.verb](args))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line, read; a mistake in them ends the process with status 2."""
    words = parser()
    args, more = words.parse_known_args(argv)  # argparse takes `key=value` words only where it first meets one
    if more and (not hasattr(args, "overrides") or any(word.startswith("-") for word in more)):
        words.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        args.overrides = [*args.overrides, *more]
    return args


def guarded(act: Callable[[], int]) -> int:
    """What `act` returns, or the exit status of its failure, which is printed as one line."""
    try:
        return act()
    except (ValueError, RuntimeError) as error:
        print(f"rayjepa: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:
        print(f"rayjepa: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rayjepa: stopped", file=sys.stderr)
        return 130


def _pretrain(args: argparse.Namespace) -> int:
    from rayjepa.cli.pretrain import pretrain, pretrain_or_resume, resume

    pairs = overrides_from(args.overrides)
    if args.resume is None:
        if args.accept_manifest:
            raise ValueError("--accept-manifest goes with --resume: a new run takes its manifest by data.videos=FILE")
        return (pretrain_or_resume if args.or_resume else pretrain)(args.preset or "demo", pairs)
    if args.or_resume:
        raise ValueError("--resume and --or-resume exclude each other: the first names a run that exists")
    if args.preset:
        raise ValueError("--preset and --resume exclude each other: a resumed run keeps its configuration")
    return resume(args.resume, pairs, new=args.accept_manifest)


def _index(args: argparse.Namespace) -> int:
    from rayjepa.cli.index import index

    return index(
        [*args.sources, *args.overrides],
        out=args.out,
        labels=args.labels,
        verify=args.verify,
        hashes=not args.no_hash,
        duplicates=args.duplicates,
        fresh=args.fresh,
    )


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


def _sweep(args: argparse.Namespace) -> int:
    from rayjepa.cli.sweep import resume, sweep

    pairs = overrides_from(args.overrides)
    if args.resume is None:
        return sweep(
            args.preset or "demo",
            args.space or "demo",
            pairs,
            trials=args.trials,
            concurrent=args.concurrent,
            metric=args.metric,
        )
    if args.preset or args.space or args.metric or pairs:
        raise ValueError(
            "--resume keeps the sweep's preset, space, metric and keys; only --trials and --concurrent go with it"
        )
    return resume(args.resume, trials=args.trials, concurrent=args.concurrent)


def _plan(args: argparse.Namespace) -> int:
    from rayjepa.cli.plan import plan

    return plan(
        args.preset or "demo",
        overrides_from(args.overrides),
        mfu=args.mfu,
        gpu=args.gpu,
        price=args.price,
        clips_per_core=args.clips_per_core,
        out=args.json,
    )


def _doctor(args: argparse.Namespace) -> int:
    from rayjepa.cli.doctor import doctor, doctor_feed

    if args.overrides[:1] == ["feed"]:
        if len(args.overrides) != 2 or args.preset or args.address or args.storage or args.insecure:
            raise ValueError("`rayjepa doctor feed RUN_DIR` takes a run's folder, and of the options --json only")
        return doctor_feed(Path(args.overrides[1]), out=args.json)
    return doctor(
        args.preset or "demo",
        overrides_from(args.overrides),
        address=args.address,
        storage=args.storage,
        insecure=args.insecure,
        out=args.json,
    )


def _submit(args: argparse.Namespace) -> int:
    from rayjepa.cli.submit import submit

    return submit(
        args.job,
        args.words,
        address=args.address,
        name=args.id,
        working_dir=args.working_dir,
        show=args.print,
        wait=not args.no_wait,
    )


def _job(args: argparse.Namespace) -> int:
    from rayjepa.cli.job import job

    return job(args.job, args.words)


def _import(args: argparse.Namespace) -> int:
    from rayjepa.cli.importing import import_weights
    from rayjepa.interop.weights import Given

    given = Given(
        heads=args.heads,
        predictor_heads=args.predictor_heads,
        position=args.position,
        frames=args.frames,
        size_px=args.size,
    )
    return import_weights(args.source, args.out, which=args.weights, predictor=not args.no_predictor, given=given)


def _export(args: argparse.Namespace) -> int:
    from rayjepa.cli.export import export

    return export(args.source, args.out, form=args.to, which=args.weights, mask_token=args.mask_token, takes=args.input)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    **BENCHES,
    "pretrain": _pretrain,
    "index": _index,
    "report": _report,
    "runs": _runs,
    "sweep": _sweep,
    "plan": _plan,
    "doctor": _doctor,
    "submit": _submit,
    "job": _job,
    "fuzz_decode": _fuzz_decode,
    "transcode": _transcode,
    "import": _import,
    "export": _export,
}
