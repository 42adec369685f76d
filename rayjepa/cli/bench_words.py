"""The words of `rayjepa bench`: its parts and their options. Imports nothing slow."""

import argparse
from pathlib import Path
from typing import Any


def add_bench(bench: argparse.ArgumentParser) -> None:
    """Give the verb its parts."""
    parts = bench.add_subparsers(title="parts", required=True, metavar="PART")
    for add in (_add_feed, _add_decode, _add_manifest, _add_soak, _add_step, _add_learning):
        part = add(parts)
        part.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
        part.add_argument("overrides", nargs="*", metavar="key=value")


def _add_feed(parts: Any) -> argparse.ArgumentParser:
    feed = parts.add_parser(
        "feed", help="how fast clips come, beside decoders alone and a DataLoader; waits, growth, and what bounds it"
    )
    feed.add_argument("--preset", default="demo")
    feed.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are printed; default 5")
    feed.add_argument("--seconds", type=float, default=3.0, help="over which clips are counted each time; default 3")
    feed.add_argument(
        "--only",
        action="append",
        default=[],
        choices=("ratios", "slow", "growth", "ceiling"),
        help="measure this part, and others named so; default all, about 13 minutes",
    )
    feed.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the figures")
    feed.set_defaults(verb="bench_feed")
    return feed


def _add_decode(parts: Any) -> argparse.ArgumentParser:
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
    decode.set_defaults(verb="bench_decode")
    return decode


def _add_manifest(parts: Any) -> argparse.ArgumentParser:
    many = parts.add_parser(
        "manifest", help="what a manifest of many rows and a long run over it take: seconds to the first batch, memory"
    )
    many.add_argument("--preset", default="tiny")
    many.add_argument("--rows", type=int, default=10_000_000, help="of the manifest; default 10000000")
    many.add_argument("--samples", type=int, default=280_000_000, help="of the run; default 280000000")
    many.add_argument("--ranks", type=int, default=2, help="training processes; default 2")
    many.set_defaults(verb="bench_manifest")
    return many


def _add_soak(parts: Any) -> argparse.ArgumentParser:
    soak = parts.add_parser(
        "soak", help="does a decoder leak: memory and descriptors over many small clips, good and bad"
    )
    soak.add_argument("--clips", type=int, default=50_000, help="default 50000")
    soak.set_defaults(verb="bench_soak")
    return soak


def _add_step(parts: Any) -> argparse.ArgumentParser:
    step = parts.add_parser(
        "step", help="where a training step's time goes, in FLOP/s, and beside transformers' layers; no Ray, no decoder"
    )
    step.add_argument("--preset", default="demo")
    step.add_argument("--rounds", type=int, default=10, help="interleaved rounds; medians are printed")
    step.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the parts")
    step.set_defaults(verb="bench_step")
    return step


def _add_learning(parts: Any) -> argparse.ArgumentParser:
    learning = parts.add_parser(
        "learning", help="linear probes of a small run over seeds, beside random weights and a run that must collapse"
    )
    learning.add_argument("--preset", default="learning")
    learning.add_argument("--seeds", default="0,1,2", metavar="N,N,…", help="one run each; default 0,1,2")
    learning.add_argument("--bank", type=int, default=4096, help="training clips decoded for a seed; default 4096")
    learning.add_argument("--probed", type=int, default=3600, help="held-out clips for the probes; default 3600")
    learning.add_argument(
        "--twin-steps", type=int, default=400, help="steps of the run that must collapse; default 400"
    )
    learning.add_argument("--plot", type=Path, metavar="FILE.svg", help="also draw the figures")
    learning.set_defaults(verb="bench_learning")
    return learning
