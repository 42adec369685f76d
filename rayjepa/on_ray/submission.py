"""A verb sent to a cluster as a Ray job: the line that does it, what usually goes wrong, and its end."""

import asyncio
import http.client
import json
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by Ray's supervisor of a job, in the environment of its node or of the job; Ray's own default is 3 s."""
LEAST_WAIT_S = 60.0
"""Less may end a driver before a large model is saved."""
ASK_S = 10.0
"""A dashboard that does not answer in this time is not there."""
PENDING_S = 15.0
"""Seconds between lines about a job that has not started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is sent, and where to."""

    address: str
    """URL of the cluster's dashboard."""
    name: str
    """Submission id."""
    entrypoint: tuple[str, ...]
    """Words of the command that the head node runs."""
    env_vars: Mapping[str, str] = field(default_factory=dict[str, str])
    """Environment of the job and of all its workers."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """Shown on the job's page of the dashboard."""
    working_dir: Path | None = None
    """Folder that is copied to the cluster; the job starts in the copy."""
    files: tuple[str, ...] = ()
    """Files in it that the job reads."""

    def line(self, *, wait: bool = True) -> str:
        """The same as a command for a shell. A token is never part of it; where it is read from may be."""
        words = ["ray", "job", "submit", "--address", self.address, "--submission-id", self.name]
        words += ["--runtime-env-json", json.dumps({"env_vars": dict(self.env_vars)})]
        words += ["--metadata-json", json.dumps(dict(self.metadata))]
        if self.working_dir is not None:
            words += ["--working-dir", str(self.working_dir)]
        if not wait:
            words.append("--no-wait")
        return " ".join([*_in_front(self.address), shlex.join([*words, "--", *self.entrypoint])])


def command(words: str, address: str) -> str:
    """A further `ray job` command to the same cluster, for a shell."""
    return " ".join([*_in_front(address), f"ray job {words} --address {shlex.quote(address)}"])


def _in_front(address: str) -> list[str]:
    """Variables that `ray job` needs. It prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to its --address."""
    pairs = {key: os.environ[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") if os.environ.get(key)}
    if os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"):
        pairs["RAY_API_SERVER_ADDRESS"] = address
    return [f"{key}={shlex.quote(value)}" for key, value in pairs.items()]


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster's job server, which takes our token and runs our Ray.

    Raises:  ValueError if the token is missing or wrong; RuntimeError if nobody answers, or another Ray does.
    """
    if _answers_without_token(address):
        log.warning(
            "warning: the cluster at %s takes jobs without a token: whoever reaches that port runs code on it. "
            "Start its nodes with RAY_AUTH_MODE=token",
            address,
        )
    elif os.environ.get("RAY_AUTH_MODE") != "token":
        raise ValueError(
            f"the cluster at {address} asks for a token: export RAY_AUTH_MODE=token, and give the token with "
            "RAY_AUTH_TOKEN_PATH=FILE or ~/.ray/auth_token (on the head node: `ray get-auth-token`)"
        )
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _preferred(address):
            client = JobSubmissionClient(address)
    except AuthenticationError as error:
        is_wrong = "nvalid" in str(error)
        raise ValueError(
            f"the cluster at {address} refuses the token: "
            + ("it is another cluster's" if is_wrong else "RAY_AUTH_MODE=token is set and no token is found")
            + "; give this cluster's with RAY_AUTH_TOKEN_PATH=FILE or ~/.ray/auth_token "
            "(on the head node: `ray get-auth-token`)"
        ) from None
    except (RuntimeError, ConnectionError) as error:
        raise RuntimeError(f"{address}: {_first_line(error)}") from error
    _need_our_versions(client, ray.__version__, address)
    return client


@contextmanager
def _preferred(address: str) -> Iterator[None]:
    """Ray prefers RAY_API_SERVER_ADDRESS, and then RAY_ADDRESS, to the address that it is given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        os.environ.pop("RAY_API_SERVER_ADDRESS")
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _answers_without_token(address: str) -> bool:
    """Raises:  RuntimeError if no dashboard of Ray is there."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ASK_S) as answer:
            json.load(answer)
            return True
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        reason = f"it answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = str(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = (
            f"what answers is not a Ray dashboard ({type(error).__name__}); it is at port 8265 by default, not 6379"
        )
    raise RuntimeError(
        f"no Ray dashboard at {address}: {reason}. It listens on the head node's own 127.0.0.1 unless told otherwise: "
        "tunnel with `ssh -N -L 8265:127.0.0.1:8265 HEAD`, and leave --address out"
    )


def _need_our_versions(client: "JobSubmissionClient", ours: str, address: str) -> None:
    """Raises:  RuntimeError if the cluster has another Ray, or a Python that rayjepa does not run on."""
    theirs = client._do_request("GET", "/api/version").json()["ray_version"]
    if theirs != ours:
        raise RuntimeError(
            f"the cluster at {address} runs Ray {theirs} and this machine has {ours}: install the same on both sides, "
            f"here with `pip install 'ray[data,default,train,tune]=={theirs}'` if rayjepa supports it"
        )
    answer = client._do_request("GET", "/api/v0/cluster_metadata")
    python = answer.json().get("data", {}).get("pythonVersion", "") if answer.status_code == 200 else ""
    if python and tuple(int(part) for part in python.split(".")[:2]) < (3, 11):
        raise RuntimeError(f"the cluster at {address} has Python {python}; rayjepa needs 3.11 or later")


def need_new_name(client: "JobSubmissionClient", submission: Submission) -> None:
    """Raises:  ValueError if a job of this submission id exists."""
    for job in client.list_jobs():
        if job.submission_id == submission.name:
            raise ValueError(
                f"submission id {submission.name} is taken: that job is {job.status.value}. Leave --id out, or use "
                f"another such as --id {submission.name}-{int(time.time()) % 100000:05d}. An id names one start of a "
                "run; a run that is to go on keeps its folder (--resume, --or-resume)"
            )


def need_sendable(submission: Submission) -> None:
    """Look at the working directory as Ray will.

    Raises:  ValueError if it is more than the dashboard takes, with its largest entries, or lacks a file of the job.
    """
    folder = submission.working_dir
    if folder is None:
        return
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: dict[str, int] = {}

    def see(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size

    quiet = logging.getLogger(f"{__name__}.packaging")
    quiet.setLevel(logging.WARNING)
    is_git_ignored = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    excludes = [_get_excludes(folder, get_runtime_env_default_excludes())]
    _dir_travel(folder, excludes, see, include_gitignore=is_git_ignored, logger=quiet)
    # An uncompressed zip: two headers with the name for each file.
    whole = sum(size + 76 + 2 * len(name.encode()) for name, size in sizes.items()) + 22
    if whole > DASHBOARD_CLIENT_MAX_SIZE:
        entries: Counter[str] = Counter()
        for name, size in sizes.items():
            top, inside, _ = name.partition("/")
            entries[top + inside] += size
        largest = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in entries.most_common(5))
        raise ValueError(
            f"--working-dir {folder} is {whole / 2**20:.0f} MiB to send, in {len(sizes)} files; the dashboard takes "
            f"{DASHBOARD_CLIENT_MAX_SIZE / 2**20:.0f} MiB. Largest: {largest}. List what the job does not need in "
            f"{folder / '.rayignore'}, written as a .gitignore, or give a smaller folder"
        )
    for name in submission.files:
        if name not in sizes:
            raise ValueError(f"{folder / name} is not sent: a .gitignore or .rayignore in {folder} names it")


def send(client: "JobSubmissionClient", submission: Submission) -> None:
    """Submit it.

    Raises:  RuntimeError with the job server's reason.
    """
    env: dict[str, Any] = {"env_vars": dict(submission.env_vars)}
    if submission.working_dir is not None:
        env["working_dir"] = str(submission.working_dir)
    try:
        client.submit_job(
            entrypoint=shlex.join(submission.entrypoint),
            submission_id=submission.name,
            runtime_env=env,
            metadata=dict(submission.metadata),
        )
    except RuntimeError as error:
        raise RuntimeError(f"the job server does not take the job: {_last_line(error)}") from error


def follow(client: "JobSubmissionClient", name: str, say: Callable[[str], None]) -> tuple[str, str]:
    """Hand what a job prints to `say` until it ends; return its last state (SUCCEEDED …), and what Ray says of it.

    Raises:  RuntimeError if the job server is lost; the job goes on then.
    """
    try:
        _wait_for_start(client, name)
        asyncio.run(_tail(client, name, say))
        while not (info := client.get_job_info(name)).status.is_terminal():
            time.sleep(1)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"lost the job server ({_first_line(error)})") from error
    is_ours = info.driver_exit_code is not None  # the message then repeats the log
    said = f"exit status {info.driver_exit_code}" if is_ours else (info.message or "")
    return info.status.value, said


def _wait_for_start(client: "JobSubmissionClient", name: str) -> None:
    said = time.monotonic()
    while (info := client.get_job_info(name)).status.value == "PENDING":
        if time.monotonic() - said > PENDING_S:
            said = time.monotonic()
            log.info("the job is pending: %s", (info.message or "").strip())
        time.sleep(0.5)


async def _tail(client: "JobSubmissionClient", name: str, say: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(name):
        say(text)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
