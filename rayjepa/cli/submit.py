"""The verb `submit`: another verb as a Ray job, after checking what usually goes wrong."""

import argparse
import logging
import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rayjepa import __version__
from rayjepa.cli import arguments
from rayjepa.cli.job import SENDER, STOP_WAIT_S, results_of
from rayjepa.on_ray import submission
from rayjepa.on_ray.submission import STOP_WAIT, Submission

log = logging.getLogger(__name__)


def submit(
    job: str,
    words: Sequence[str],
    *,
    address: str | None,
    name: str | None,
    working_dir: Path | None,
    show: bool,
    wait: bool,
) -> int:
    """Print the `ray job submit` line of a verb and, unless `show`, run it; return the job's exit status."""
    sent, results = prepared(job, words, address=address, name=name, working_dir=working_dir)
    print(sent.line(wait=wait), flush=True)
    if show:
        return 0
    submission.need_sendable(sent)
    client = submission.connect(sent.address)
    submission.need_new_name(client, sent)
    submission.send(client, sent)
    log.info("job %s is submitted; results: %s, on the cluster", sent.name, results)
    hints = [
        f"follow it: {submission.command(f'logs {sent.name} --follow', sent.address)}",
        f"stop it:   {submission.command(f'stop {sent.name}', sent.address)}",
    ]
    if not wait:
        log.info("%s", "\n".join(hints))
        return 0
    try:
        state, said = submission.follow(client, sent.name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        log.info("\nthe job goes on\n%s", "\n".join(hints))
        return 130
    except RuntimeError as error:
        log.info("%s", "\n".join(hints))
        raise RuntimeError(f"{error}; the job may go on") from error
    log.info("job %s: %s", sent.name, " ".join(filter(None, (state, said.strip()))))
    if said == "exit status 127":
        log.info("its shell did not find `rayjepa`: install it for the Python on PATH of the head node's `ray start`")
    return {"SUCCEEDED": 0, "STOPPED": 130}.get(state, 1)


def prepared(
    job: str, words: Sequence[str], *, address: str | None, name: str | None, working_dir: Path | None
) -> tuple[Submission, Path]:
    """The submission of a verb's words, and where its results will be; asks nobody.

    The entrypoint is the installed package, which every node needs anyway: code that travels with each job would be
    another one on each. The working directory is for presets and the like.
    Raises:  ValueError for a mistake that would show on the cluster only.
    """
    args = arguments([job, *words])
    name = name or f"{job}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"--id {name!r} must be letters, digits, and - _ . after the first")
    if working_dir is not None and not working_dir.is_dir():
        raise ValueError(f"--working-dir {working_dir} is not a folder")
    results = results_of(args, name=name)
    files = [place for option in ("preset", "space") for place in _ship(args, option, working_dir)]
    sent = Submission(
        address=_url(address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"),
        name=name,
        entrypoint=("rayjepa", "job", job, *_words(args)),
        env_vars={STOP_WAIT: str(STOP_WAIT_S), SENDER: __version__},
        metadata={"results": str(results)},
        working_dir=working_dir.resolve() if working_dir is not None else None,
        files=tuple(files),
    )
    return sent, results


def _url(address: str) -> str:
    """An address with a scheme: Ray takes one without for that of the GCS."""
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"--address {address}: give the URL of the dashboard, such as http://127.0.0.1:8265")
    return address.rstrip("/")


def _ship(args: argparse.Namespace, option: str, working_dir: Path | None) -> list[str]:
    """Name a file as the job will find it, by its place in the working directory; return that place."""
    given = getattr(args, option, None)
    if given is None or Path(given).is_absolute() or not Path(given).is_file():
        return []  # what ships with the package, or what every node sees
    path = Path(given).resolve()
    if working_dir is None or not path.is_relative_to(working_dir.resolve()):
        raise ValueError(
            f"--{option} {given} is a file of this machine: the job finds it if you send its folder along, with "
            f"`rayjepa submit --working-dir {path.parent} …`, or if it has an absolute path that the head node sees"
        )
    place = path.relative_to(working_dir.resolve()).as_posix()
    setattr(args, option, place)
    return [place]


def _words(args: argparse.Namespace) -> list[str]:
    """The words that parse to `args`."""
    words = list(getattr(args, "sources", ()))
    for option, value in vars(args).items():
        if option in ("verb", "sources", "overrides") or value in (None, False):
            continue
        flag = f"--{option.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return [*words, *args.overrides]
