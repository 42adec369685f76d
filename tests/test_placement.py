"""What fits where: labels, whole bundles, and words that say what is missing."""

import pytest

from rayjepa.config import ConfigError, resolve
from rayjepa.on_ray.placement import Node, Part, decode_part, refusal, selector, train_part, unplaced

ROLE = {"cluster.train_label": "rayjepa.io/role=train", "cluster.decode_label": "rayjepa.io/role=decode"}


def node(cpus: float, gpus: float = 0, *, free: float | None = None, role: str = "") -> Node:
    total = {"CPU": float(cpus), "GPU": float(gpus), "memory": 2.0**33}
    labels = {"ray.io/node-id": "f0"} | ({"rayjepa.io/role": role} if role else {})
    return Node(total=total, free=total | ({} if free is None else {"CPU": float(free)}), labels=labels)


def part(count: int, cpus: float, gpus: float = 0, label: str | None = None) -> Part:
    resources = (("CPU", float(cpus)), *((("GPU", float(gpus)),) if gpus else ()))
    return Part(use="training", count=count, resources=resources, label=label, knobs="cluster.workers")


def test_a_bundle_lies_on_one_node() -> None:
    assert unplaced([part(1, 4)], [node(2), node(2)], idle=True) == [part(1, 4)]
    assert unplaced([part(2, 2)], [node(2), node(3)], idle=True) == []
    assert unplaced([part(3, 0.3)], [node(0.9)], idle=True) == []


def test_what_is_in_use_is_missing_now_and_not_for_ever() -> None:
    nodes = [node(4, free=1)]
    assert unplaced([part(3, 1)], nodes, idle=False) == [part(2, 1)]
    assert unplaced([part(3, 1)], nodes, idle=True) == []


def test_a_node_that_is_given_back_holds_nothing() -> None:
    leaving = Node(total={"CPU": 4.0}, free={}, labels={})
    assert unplaced([part(1, 1)], [leaving], idle=False) == [part(1, 1)]


def test_labels_bind_parts_to_nodes() -> None:
    nodes = [node(8, role="decode"), node(2, role="train")]
    run = resolve("tiny", {"cluster.workers": 2, "cluster.decoders": 3, "train.clips": 4, **ROLE})
    parts = [train_part(run, gpus=False, labels=True), decode_part(run, labels=True)]
    assert unplaced(parts, nodes, idle=True) == []
    (left,) = unplaced(parts, [nodes[0]], idle=True)
    assert (left.count, str(left)) == (2, "2 x {CPU: 1} with rayjepa.io/role=train for training")
    without = [train_part(run, gpus=False, labels=False), decode_part(run, labels=False)]
    assert unplaced(without, [node(6)], idle=True) == []


def test_decoding_leaves_the_gpus_to_training() -> None:
    nodes = [node(4, gpus=2), node(4)]
    assert unplaced([part(4, 1), part(2, 2, gpus=1)], nodes, idle=True) == []


def test_a_refusal_has_the_numbers_the_knobs_and_the_labels_that_exist() -> None:
    run = resolve("tiny", {"cluster.workers": 2, **ROLE})
    parts = [train_part(run, gpus=True, labels=True), decode_part(run, labels=True)]
    nodes = [node(1, role="decode"), node(1, role="decode")]
    text = refusal(parts, unplaced(parts, nodes, idle=True), nodes, why="")
    assert "the cluster has 2 CPUs and the run needs 4" in text
    assert "Missing: 2 x {CPU: 1, GPU: 1} with rayjepa.io/role=train for training" in text
    assert "2 node(s) with 2 CPUs and 0 GPUs; labels: rayjepa.io/role=decode (on 2)" in text
    assert "cluster.workers" in text
    assert "cluster.decoders" in text


@pytest.mark.parametrize("label", ["train", "a=", "=b", "a b=c", "a=b,c=d", "a=!b", "x/y/z=1", "a=" + "b" * 64])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.train_label"):
        resolve("tiny", {"cluster.train_label": label})


def test_a_label_may_have_a_domain() -> None:
    run = resolve("tiny", {"cluster.decode_label": "ray.io/market-type=spot", "cluster.train_label": "pool=a100.big"})
    assert selector(run.cluster.decode_label) == {"ray.io/market-type": "spot"}
    assert selector(run.cluster.train_label) == {"pool": "a100.big"}
    assert selector(None) == {}
