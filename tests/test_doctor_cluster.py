"""The doctor at a real head with a token and a second node: what it finds, what it refuses, and that it always ends."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayjepa.config import resolve
from rayjepa.doctor import Finding, worst

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PATIENCE_S = 150
PORTS = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "node-manager-port")
"""Of each node; beside others' clusters on this machine Ray's defaults may be taken."""
RUN = {"cluster.workers": 2, "cluster.decoders": 1, "cluster.train_label": "role=train"}


@dataclass(frozen=True)
class Site:
    address: str
    dashboard: str
    environment: dict[str, str]
    token: str


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A head with a token and all that the doctor asks for, and a node with the label that the run asks for."""
    token = secrets.token_hex(32)
    home = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))  # short: sockets live there
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    environment = clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_JOB_STOP_WAIT_TIME_S": "600"}
    gcs, dashboard, client, *ports = free_ports(3 + 2 * len(PORTS))
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    head += [f"--temp-dir={home}/ray", "--num-cpus=1", '--resources={"sweep": 1}']
    labelled = [f"--address=127.0.0.1:{gcs}", "--num-cpus=3", "--labels=role=train"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with (home / "out").open("w") as out:
            for words, ready in ((head, gcs), (labelled, dashboard)):
                words += [f"--{kind}={ports.pop()}" for kind in PORTS]
                command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
                command += ["--object-store-memory=100000000", *words]
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
                )
                wait_for(ready, processes[-1], home / "out")
        wait_for_nodes(f"127.0.0.1:{gcs}", token, 2)
        yield Site(f"127.0.0.1:{gcs}", f"127.0.0.1:{dashboard}", environment, token)
    finally:
        for process in reversed(processes):  # each ends its own processes in order
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Below those that Ray gives to workers (10002 to 19999) and those that the kernel gives out (32768 and up)."""
    found: list[int] = []
    for port in range(25100, 26000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()}")


def wait_for_nodes(address: str, token: str, count: int) -> None:
    from rayjepa.on_ray.gcs import read_head

    until = time.monotonic() + PATIENCE_S
    while len(read_head(address, token).nodes) < count:
        assert time.monotonic() < until, f"{address} has fewer than {count} nodes"
        time.sleep(0.1)


@pytest.fixture
def examined(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Examine the cluster with other variables than its own; return what is not ok, and all, by name."""
    from rayjepa.on_ray.examine import examine

    def examined(address: str = site.address, keys: dict[str, object] | None = None, **variables: str | None):
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name, value in (site.environment | variables).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            elif name.startswith("RAY_"):
                monkeypatch.setenv(name, value)
        run = resolve("tiny", RUN | (keys or {}))
        found = list(examine(run, address, tmp_path / "runs", insecure=False))
        assert not any("check itself failed" in finding.found for finding in found), found
        return [finding for finding in found if finding.state != "ok"], {finding.name: finding for finding in found}

    return examined


def test_a_cluster_that_has_all_that_the_run_needs_is_ok(examined) -> None:
    amiss, found = examined()
    assert amiss == []
    assert found["answers"].found == "2 of 2 looked at themselves"
    assert "role=train (on 1)" in found["nodes"].found
    assert "no autoscaler" in found["nodes"].found


def test_a_label_that_is_missing_and_a_token_that_is_not_sent_are_errors(examined) -> None:
    amiss, found = examined(keys={"cluster.decode_label": "role=decode"}, RAY_AUTH_MODE=None)
    assert [finding.name for finding in amiss] == ["token sent", "labels", "resources"]
    assert {finding.state for finding in amiss} == {"error"}
    assert found["token sent"].remedy == "export RAY_AUTH_MODE=token"
    assert found["answers"].state == "ok"


@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_wrong_or_missing_token_is_one_clear_error(examined, token: str | None) -> None:
    amiss, _ = examined(RAY_AUTH_TOKEN=token)
    assert [(finding.name, finding.state) for finding in amiss] == [("token accepted", "error")]
    assert "ray get-auth-token" in amiss[0].remedy


def test_an_address_without_a_head_is_an_error_in_seconds(examined, site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        free = free_ports(1)[0]
        addresses = {
            f"127.0.0.1:{free}": "Connection refused",
            f"127.0.0.1:{silent.getsockname()[1]}": "is no head of a Ray cluster",
            site.dashboard: "it speaks HTTP/1",
            f"http://{site.dashboard}": "a dashboard's address",
            "127.0.0.1": "is not HOST:PORT",
            "no-such-host.invalid:6379": "nothing answers at no-such-host.invalid",
        }
        for address, reason in addresses.items():
            began = time.monotonic()
            [finding], _ = examined(address)
            assert finding.state == "error"
            assert reason in finding.found
            assert time.monotonic() - began < 60  # 5 s where something listens and is silent


def test_a_head_that_asks_for_no_token_is_an_error_unless_that_is_accepted() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    from rayjepa.on_ray.examine import access

    class Anyone(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, (Anyone(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        open_, accepted = (access(f"127.0.0.1:{port}", insecure=insecure)[0] for insecure in (False, True))
        server.stop(None).wait()
    assert (open_.state, accepted.state) == ("error", "warning")
    assert "CVE-2023-48022" in open_.found


def test_the_verb_says_all_of_it_writes_it_down_and_ends_by_the_worst(site: Site, tmp_path: Path) -> None:
    """In a mount namespace of its own, so that the nodes cannot see the folder, which is small and forgets."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not make a mount namespace")
    (tmp_path / "runs").mkdir()
    words = [sys.executable, "-m", "rayjepa.cli", "doctor", "--preset", "tiny", "--address", site.address]
    words += ["--storage", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json")]
    words += [f"{key}={value}" for key, value in RUN.items()]
    line = f'mount -t tmpfs -o size=1m none {tmp_path}/runs && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", line, "sh", *words],
        env=site.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said = json.loads((tmp_path / "found.json").read_text())
    found = {(line.pop("group"), line["name"]): Finding(**line) for line in said["findings"]}
    assert said["worst"] == worst(found.values()) == "error"
    assert found["storage", "file system"].state == "warning"
    assert "tmpfs" in found["storage", "file system"].found
    blind = found[f"cluster {site.address}", "storage"]
    assert blind.state == "error"
    assert "do not see the file just written here: No such file or directory" in blind.found
    assert all(f"{finding.state:<9}{finding.name:<17}{finding.found}" in done.stdout for finding in found.values())
    assert all(f"→ {finding.remedy}\n" in done.stdout for finding in found.values() if finding.remedy)


def test_ctrl_c_ends_it_and_the_process_that_asks_the_nodes(site: Site, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rayjepa.cli", "doctor", "--preset", "tiny", "--address", site.address]
    marked = site.environment | {"MARK": str(tmp_path)}
    with subprocess.Popen(
        words, env=marked, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as doctor:
        assert doctor.stdout is not None
        for line in doctor.stdout:
            if "resources" in line:  # the last line before the nodes are asked
                break
        time.sleep(1)
        doctor.send_signal(signal.SIGINT)
        assert doctor.stdout.read().endswith("rayjepa: stopped\n")
        assert doctor.wait() == 130
    until = time.monotonic() + PATIENCE_S
    while left := [p for p in Path("/proc").glob("[0-9]*") if marked_with(p, f"MARK={tmp_path}")]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def marked_with(process: Path, mark: str) -> bool:
    with suppress(OSError):
        return mark.encode() in (process / "environ").read_bytes()
    return False
