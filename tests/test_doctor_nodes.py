"""What the doctor makes of a cluster's nodes: a thousand in a few lines, and only what differs is named."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from rayjepa.config import resolve
from rayjepa.doctor import Finding, worst
from rayjepa.on_ray.answers import Answers, findings_of, here
from rayjepa.on_ray.capacity import capacity
from rayjepa.on_ray.head import Autoscaler, Head, Node

HERE = here()
GIB = 2**30
WELL: dict[str, Any] = {
    "packages": dict(HERE.packages),
    "code": HERE.code,
    "seen": "",
    "writable": "",
    "unreadable": [],
    "shared": [64 * GIB, 64 * GIB],
    "session": [900 * GIB, 500 * GIB],
    "spilled": 0,
    "gpus": 8,
    "files": 65536,
    "variable": "600",
}


def head_of(
    count: int,
    *,
    labels: Mapping[str, str] | None = None,
    autoscaler: Autoscaler = "none",
    used: float = 0.0,
    **resources: float,
) -> Head:
    offered = {"CPU": 8.0, "GPU": 8.0, "object_store_memory": 32.0 * GIB, "sweep": 1.0} | resources
    nodes = [
        Node(
            id=f"{n:056x}",
            address=f"10.0.{n // 250}.{n % 250}",
            is_head=n == 0,
            resources=offered,
            available=offered | {"CPU": offered["CPU"] - used},
            labels=dict(labels or {}),
            session="/tmp/ray/session",
        )
        for n in range(count)
    ]
    return Head(ray="2.60.0", python="3.11.7", dashboard=None, autoscaler=autoscaler, nodes=tuple(nodes))


def answers(count: int = 1000, *, clocks: Mapping[int, float] | None = None, **changed: Mapping[int, Any]) -> Answers:
    """All is well on `count` nodes, but for facts changed on some of them: fact={number of the node: value}."""
    head = head_of(count)
    given = Answers(head=head, here=HERE)
    for number, node in enumerate(head.nodes):
        facts = copy.deepcopy(WELL) | {fact: values[number] for fact, values in changed.items() if number in values}
        given.add({"node": node.id, **facts})
        given.add({"node": node.id, "ahead_s": (clocks or {}).get(number, 0.0), "within_s": 0.005})
    return given


def amiss(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.state != "ok"]


def test_a_thousand_nodes_that_are_well_are_a_few_lines() -> None:
    found = findings_of(answers())
    assert amiss(found) == []
    assert len(found) <= 10
    assert found[0].found == "1000 of 1000 looked at themselves"


def test_versions_that_differ_are_named_with_their_nodes() -> None:
    older = {n: HERE.packages | {"torch": "2.7.0"} for n in (3, 4, 5, 6)} | {9: HERE.packages | {"torch": None}}
    [finding] = amiss(findings_of(answers(packages=older)))
    assert finding.state == "error"
    assert f"torch {HERE.packages['torch']} here" in finding.found
    assert "2.7.0 on 4 nodes (10.0.0.3, 10.0.0.4, 10.0.0.5, …)" in finding.found
    assert "missing on 10.0.0.9" in finding.found
    [finding] = amiss(findings_of(answers(code={1: "other"})))
    assert (finding.name, finding.state) == ("packages", "error")


@pytest.mark.parametrize(
    ("fact", "value", "name", "state"),
    [
        ("seen", "No such file or directory", "storage", "error"),
        ("writable", "Permission denied", "storage", "error"),
        ("unreadable", ["/data/clips.parquet"], "videos", "error"),
        ("shared", [64 * 2**20, 64 * 2**20], "shared memory", "warning"),
        ("session", [900 * GIB, 9 * GIB], "disks", "error"),
        ("session", [60 * GIB, 4 * GIB], "disks", "warning"),
        ("spilled", 7 * GIB, "spilling", "warning"),
        ("gpus", 0, "GPUs", "error"),
        ("gpus", 9, "GPUs", "warning"),
        ("files", 1024, "open files", "warning"),
    ],
)
def test_one_node_that_is_not_well_is_named(fact: str, value: object, name: str, state: str) -> None:
    [finding] = amiss(findings_of(answers(20, **{fact: {7: value}})))
    assert (finding.name, finding.state) == (name, state)
    assert "10.0.0.7" in finding.found
    assert finding.remedy


def test_clocks_are_judged_by_what_is_known_of_them() -> None:
    assert amiss(findings_of(answers(5, clocks={1: 1.004}))) == []  # 5 ms of that are not known
    [late] = amiss(findings_of(answers(5, clocks={1: -2.5})))
    assert (late.name, late.state) == ("clocks", "warning")
    assert "-2500 ms" in late.found
    [far] = amiss(findings_of(answers(5, clocks={1: 45.0})))
    assert far.state == "error"


def test_nodes_that_fail_or_are_silent_are_named() -> None:
    given = answers(6)
    silent = given.head.nodes[2].id
    del given.facts[silent]
    [finding] = amiss(findings_of(given))
    assert finding.found == "5 of 6 looked at themselves; no answer from 10.0.0.2"
    given.add({"node": silent, "failed": "no room for a worker"})
    [finding] = amiss(findings_of(given))
    assert finding.found.endswith("10.0.0.2: no room for a worker")


@pytest.mark.parametrize(
    ("value", "states"), [("600", []), (None, ["warning"]), ("3", ["warning"]), ("x", ["warning"])]
)
def test_a_job_that_is_killed_while_it_saves_is_a_warning(value: str | None, states: list[str]) -> None:
    found = amiss(findings_of(answers(3, variable={0: value})))
    assert [finding.state for finding in found] == states
    assert all("RAY_JOB_STOP_WAIT_TIME_S=600" in finding.remedy for finding in found)


def test_what_the_run_asks_for_has_to_fit_on_single_nodes() -> None:
    run = resolve("tiny", {"cluster.workers": 4, "cluster.cpus_per_worker": 5.0, "cluster.gpus": True})
    assert worst(capacity(run, head_of(6))) == "ok"
    [finding] = amiss(capacity(run, head_of(3)))  # 24 CPUs, and one worker's five on each of three nodes
    assert (finding.name, finding.state) == ("resources", "error")
    assert "no place for 1 x {CPU: 5, GPU: 1}" in finding.found
    [finding] = amiss(capacity(run, head_of(3, autoscaler="v2")))
    assert finding.state == "warning"
    [finding] = amiss(capacity(run, head_of(6, used=6.0)))
    assert finding.state == "warning"
    assert "would wait" in finding.found


def test_a_label_that_no_node_has_is_named_with_its_remedy() -> None:
    run = resolve("tiny", {"cluster.train_label": "rayjepa.io/role=train"})
    assert worst(capacity(run, head_of(6, labels={"rayjepa.io/role": "train"}))) == "ok"
    labels, resources = amiss(capacity(run, head_of(6, labels={"rayjepa.io/role": "decode"})))
    assert (labels.state, resources.state) == ("error", "error")
    assert "ray start --labels=rayjepa.io/role=train" in labels.remedy


def test_a_cluster_without_seats_for_trials_is_a_warning() -> None:
    head = head_of(6)
    for node in head.nodes:
        node.resources.pop("sweep", None)
    [finding] = amiss(capacity(resolve("tiny", {}), head))
    assert (finding.name, finding.state) == ("seats", "warning")
    assert "--resources='{\"sweep\": 8}'" in finding.remedy
