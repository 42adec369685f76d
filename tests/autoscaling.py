"""A cluster on this machine whose nodes Ray's own autoscaler starts and ends: a head without CPUs, fake nodes.

Ray's `AutoscalingCluster` cannot be used from the wheel: it reads a file that is not in it, runs `ray stop --force`,
which ends every Ray on the machine, and takes it that the control store is on port 6379.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of the form that Ray's fake provider counts with; the nodes that it starts are 00001, 00002, …
HEAD_ID = "f" * 51 + "00000"
# Every process of a cluster has this variable, by which it is found in the end.
MARK = "RAYJEPA_TEST_CLUSTER"
EMPTY = ["initialization_commands", "setup_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"]
EMPTY += [f"{who}_{what}_commands" for who in ("head", "worker") for what in ("setup", "start_ray")]


@dataclass(frozen=True)
class NodeType:
    """A kind of node that the autoscaler may start."""

    resources: Mapping[str, int]
    labels: Mapping[str, str]
    most: int
    """Nodes of this kind at most."""


@dataclass(frozen=True)
class Cluster:
    environment: dict[str, str]
    """For a driver: the address, and a token that was made for this cluster."""
    observer: subprocess.Popen[str]

    def ask(self, *question: object) -> Any:
        """What a process that is attached to the cluster answers: see `_observe`.

        Not this process: Ray reads its token once, and other modules' clusters have others.
        """
        assert self.observer.stdin is not None
        assert self.observer.stdout is not None
        self.observer.stdin.write(json.dumps(question) + "\n")
        self.observer.stdin.flush()
        return json.loads(self.observer.stdout.readline())


@contextlib.contextmanager
def autoscaling(folder: Path, kinds: Mapping[str, NodeType], *, idle_s: float) -> Iterator[Cluster]:
    """A head without CPUs, and an autoscaler that may start nodes of `kinds`; nothing is left of it after the block.

    `folder` must be short, since Ray's sockets lie in it, and takes the logs.
    """
    port, *others = _free_ports(4)
    address = f"127.0.0.1:{port}"
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(_config(kinds, address, idle_s)))
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"--autoscaling-config={config}", f"--port={port}", f"--temp-dir={folder}/ray"]
    command += ["--num-cpus=0", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"]
    command += ["--include-dashboard=false", "--disable-usage-stats", f"--ray-client-server-port={others[0]}"]
    command += [f"--dashboard-agent-listen-port={others[1]}", f"--metrics-export-port={others[2]}"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | token
    head = {
        **clean,
        MARK: str(folder),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=head, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for_port(port, process, folder)
        driver = {**clean, "RAY_ADDRESS": address}
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (folder / "observer.log").open("w") as log:
            observer = subprocess.Popen(command, env={**driver, MARK: str(folder)}, stderr=log, **pipes)
        yield Cluster(driver, observer)
    finally:
        _end(process, folder)


def _config(kinds: Mapping[str, NodeType], address: str, idle_s: float) -> dict[str, Any]:
    provider = {
        # By its module, as the name `fake_multinode` makes the monitor look for the missing file too.
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": address,
    }
    types: dict[str, Any] = {
        name: {
            "resources": {**kind.resources, "object_store_memory": 100 * 2**20},
            "labels": dict(kind.labels),
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind.most,
        }
        for name, kind in kinds.items()
    }
    types["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind.most for kind in kinds.values()),
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": types,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in EMPTY},
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for_port(port: int, process: subprocess.Popen, folder: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the head did not start: {(folder / 'head.log').read_text()[-2000:]}")


def _end(head: subprocess.Popen, folder: Path) -> None:
    """End the head at once, which would first wait for its nodes, and every process that it or its monitor started."""
    until = time.monotonic() + 60
    while left := _processes(folder):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < until, left
        time.sleep(0.1)
    head.wait()


def _processes(folder: Path) -> list[int]:
    """Processes of the cluster whose folder this is."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={folder}" in (entry / "environ").read_text(errors="replace").split("\0"):
                found.append(int(entry.name))
    return found


def _observe() -> None:
    """Answer questions, one JSON list a line, until there are no more."""
    import ray
    import ray.util

    from rayjepa.config import resolve
    from rayjepa.on_ray.cluster import _check_room
    from rayjepa.on_ray.waiting import read_status

    ray.init(log_to_driver=False)
    for line in sys.stdin:
        answer: Any = None
        match json.loads(line):
            case ["nodes"]:  # by role
                answer = Counter(n["Labels"].get("rayjepa.io/role", "head") for n in ray.nodes() if n["Alive"])
            case ["wishes"]:
                answer = len(read_status().groups)
            case ["refusal", keys]:
                try:
                    _check_room(resolve("tiny", keys))
                except RuntimeError as error:
                    answer = str(error)
            case ["hold", count, role]:
                selectors = [{"rayjepa.io/role": role}] * count
                answer = ray.util.placement_group([{"CPU": 1.0}] * count, bundle_label_selector=selectors).wait(300)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _observe()
