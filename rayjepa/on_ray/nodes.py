"""One question to every node of a cluster at once, from a process of its own: `ask` here, `python -m` this there.

A process of its own, because Ray ends the process that it is in when it meets certain faults, and cannot be stopped
while it waits for others.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

CLOCK_ROUNDS, CLOCKS_AT_ONCE = 4, 16
"""The first round starts a worker; the shortest of the others bounds the error of the clock's reading."""


def ask(
    address: str, question: Mapping[str, Any], nodes: Mapping[str, str], *, patience_s: float, token_mode: str | None
) -> Iterator[dict[str, Any]]:
    """The answers of the nodes as they come: each with `node` (its id), what it found, and later its clock.

    `nodes`: folder of the session by node id. Ends when all have answered, or at the end of patience.
    Raises:  RuntimeError with Ray's words if no node could be asked.
    """
    told = {"address": address, "question": dict(question), "nodes": dict(nodes), "patience_s": patience_s}
    environment = os.environ | ({"RAY_AUTH_MODE": token_mode} if token_mode else {})
    environment |= {"RAY_gcs_server_request_timeout_seconds": "10", "RAY_USAGE_STATS_ENABLED": "0"}
    until = time.monotonic() + patience_s
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "rayjepa.on_ray.nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the process that asks, which ends this one
        )
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as words:
                words.write(json.dumps(told).encode())
            assert process.stdout is not None
            for line in _lines(process.stdout.fileno(), until):
                yield json.loads(line)
            with contextlib.suppress(subprocess.TimeoutExpired):  # at the end of patience it still runs
                if process.wait(0 if time.monotonic() > until else 5):
                    said.seek(0)
                    raise RuntimeError(_last_words(said.read()) or f"ended with status {process.returncode}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _lines(fd: int, until: float) -> Iterator[bytes]:
    """Whole lines from a pipe until its end, or the end of patience."""
    poll, rest = select.poll(), b""
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0.0, until - time.monotonic()) * 1e3):
        part = os.read(fd, 1 << 20)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


def _last_words(text: str) -> str:
    """The line that says why, among Ray's log lines and tracebacks."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error: " in line or "Exception: " in line or "Check failed" in line]
    return (telling or lines or [""])[-1][:500]


def _main() -> None:
    """Ask as told on standard input; a line of JSON on standard output for each answer."""
    told = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever Ray prints must not come between the answers
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from rayjepa.on_ray import node_facts

    cloudpickle.register_pickle_by_value(node_facts)
    ray.init(address=told["address"], log_to_driver=False, logging_level=logging.ERROR)
    look = ray.remote(node_facts.facts)
    look_at_clock = ray.remote(node_facts.clock)
    until = time.monotonic() + told["patience_s"]

    def options(node: str) -> dict[str, Any]:
        # No resources, so that a full cluster answers too.
        return {
            "num_cpus": 0,
            "max_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }

    def clock(node: str) -> None:
        rounds: list[tuple[float, float]] = []
        for _ in range(CLOCK_ROUNDS):
            began = time.time()
            there = ray.get(look_at_clock.options(**options(node)).remote(), timeout=max(0.1, until - time.monotonic()))
            ended = time.time()
            rounds.append(((ended - began) / 2, there - (began + ended) / 2))
        within, ahead = min(rounds)
        out.write(json.dumps({"node": node, "ahead_s": ahead, "within_s": within}) + "\n")

    with ThreadPoolExecutor(CLOCKS_AT_ONCE) as pool:
        asked = {
            look.options(**options(node)).remote({**told["question"], "session": session}): node
            for node, session in told["nodes"].items()
        }
        while asked and time.monotonic() < until:
            done, _ = ray.wait(list(asked), timeout=1.0)
            for answer in done:
                node = asked.pop(answer)
                try:
                    out.write(json.dumps({"node": node, **ray.get(answer)}) + "\n")
                except Exception as failure:  # noqa: BLE001  one node's failure is its answer
                    out.write(json.dumps({"node": node, "failed": _last_words(str(failure))}) + "\n")
                else:
                    pool.submit(clock, node)
    ray.shutdown()


if __name__ == "__main__":
    _main()
