"""The parts of the verb `bench`, from their words to what measures them. Imports nothing slow."""

import argparse
from collections.abc import Callable

from rayjepa.cli.pairs import overrides_from


def _bench_feed(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench_feed import feed

    return feed(
        args.preset,
        overrides_from(args.overrides),
        rounds=args.rounds,
        seconds=args.seconds,
        only=args.only,
        out=args.json,
        plot=args.plot,
    )


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


def _bench_step(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench_step import step

    pairs = overrides_from(args.overrides)
    return step(args.preset, pairs, rounds=args.rounds, out=args.json, plot=args.plot)


def _bench_learning(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench_learning import learning

    pairs = overrides_from(args.overrides)
    return learning(
        args.preset,
        pairs,
        seeds=args.seeds,
        bank=args.bank,
        probed=args.probed,
        twin_steps=args.twin_steps,
        out=args.json,
        plot=args.plot,
    )


def _bench_manifest(args: argparse.Namespace) -> int:
    from rayjepa.cli.bench_manifest import manifest

    pairs = overrides_from(args.overrides)
    return manifest(args.preset, pairs, rows=args.rows, samples=args.samples, ranks=args.ranks, out=args.json)


BENCHES: dict[str, Callable[[argparse.Namespace], int]] = {
    "bench_feed": _bench_feed,
    "bench_decode": _bench_decode,
    "bench_soak": _bench_soak,
    "bench_step": _bench_step,
    "bench_learning": _bench_learning,
    "bench_manifest": _bench_manifest,
}
"""By the name that the parser gives."""
