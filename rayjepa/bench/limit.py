"""What FFmpeg itself pays to decode: `ffmpeg -threads 1 -f null`, by its own account of CPU time."""

import re
import shutil
import subprocess
from pathlib import Path

_FRAMES = re.compile(r"frame=\s*(\d+)")
_TIME = re.compile(r"bench: utime=([\d.]+)s stime=([\d.]+)s")


def found() -> str | None:
    """The ffmpeg on PATH."""
    return shutil.which("ffmpeg")


def version(ffmpeg: str) -> str:
    """What it calls itself, such as 5.1.9-0+deb12u1."""
    said = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout.split()
    return said[2]


def seconds_per_frame(ffmpeg: str, path: Path) -> float:
    """CPU seconds per frame over a whole file, without the start of the program and the probe.

    Raises:  RuntimeError with ffmpeg's last words.
    """
    words = [ffmpeg, "-hide_banner", "-nostdin", "-benchmark", "-threads", "1", "-i", str(path)]
    words += ["-map", "0:v:0", "-filter_threads", "1", "-f", "null", "-"]
    run = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    frames, time = _FRAMES.findall(run.stderr), _TIME.search(run.stderr)
    if run.returncode or not frames or time is None:
        raise RuntimeError(f"ffmpeg could not decode {path}: {run.stderr.strip().splitlines()[-1:]}")
    return (float(time[1]) + float(time[2])) / int(frames[-1])
