"""What the nodes said of themselves, a thousand of them in ten lines: only what differs is named."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayjepa.doctor import Finding, error, ok, warning
from rayjepa.doctor.packages import SHOWN
from rayjepa.doctor.room import FILES_OF_A_RUN, FULL, GIB, LEAST_DISK
from rayjepa.on_ray import node_facts
from rayjepa.on_ray.head import Head, Node
from rayjepa.on_ray.submission import LEAST_WAIT_S, STOP_WAIT
from rayjepa.train.folder import SILENCE_S

NAMED = 3
"""Nodes that a line names; of the others it says how many."""
SKEW_S = 1.0


@dataclass(frozen=True, slots=True)
class Here:
    """The same facts of the process that asks."""

    packages: Mapping[str, str | None]
    code: str | None


def here() -> Here:
    question = {"packages": ["rayjepa", *SHOWN], "file": None, "text": "", "paths": [], "session": "/", "variable": ""}
    own = node_facts.facts(question)
    return Here(own["packages"], own["code"])


@dataclass(slots=True)
class Answers:
    """Facts, clocks and failures by node, as they came."""

    head: Head
    here: Here
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    clocks: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, answer: dict[str, Any]) -> None:
        node = answer.pop("node")
        if "failed" in answer:
            self.failures[node] = answer["failed"]
        elif "ahead_s" in answer:
            self.clocks[node] = answer["ahead_s"], answer["within_s"]
        else:
            self.facts[node] = answer


def findings_of(answers: Answers) -> list[Finding]:
    """All lines on the nodes' insides."""
    names = _names(answers.head)
    lines = [_answered(answers, names)]
    if answers.facts:
        lines += [
            *_packages(answers, names),
            *_paths(answers, names),
            _clocks(answers, names),
            *_room(answers, names),
            *_devices(answers, names),
            *_stopping(answers),
        ]
    return lines


def _answered(answers: Answers, names: Mapping[str, str]) -> Finding:
    silent = [node for node in names if node not in answers.facts and node not in answers.failures]
    found = f"{len(answers.facts)} of {len(names)} looked at themselves"
    remedy = "`ray status` and the raylet's log on these nodes; a node that cannot start a worker cannot train"
    if answers.failures:
        reasons = groups(answers.failures)
        what = "; ".join(f"{_named(nodes, names)}: {reason}" for reason, nodes in reasons)
        return error("answers", f"{found}; {what}", remedy)
    if silent:
        return error("answers", f"{found}; no answer from {_named(silent, names)}", remedy)
    return ok("answers", found)


def _packages(answers: Answers, names: Mapping[str, str]) -> Iterator[Finding]:
    """Versions here and on the nodes; code of ours is compared by content, since its version may stand still."""
    same: list[str] = []
    for name, mine in answers.here.packages.items():
        there = {node: said["packages"].get(name) for node, said in answers.facts.items()}
        if set(there.values()) == {mine}:
            same.append(f"{name} {mine}")
            continue
        parts = [f"{version or 'missing'} on {_named(nodes, names)}" for version, nodes in groups(there)]
        what = f"{name} {mine or 'missing'} here; {', '.join(parts)}"
        yield error("packages", what, "`pip install -c cluster/constraints.txt .` on all nodes, or one image for all")
    other = [node for node, said in answers.facts.items() if said["code"] not in (None, answers.here.code)]
    if other:
        what = f"rayjepa's files differ from those here on {_named(other, names)}"
        yield error(
            "packages", what, "one revision everywhere: `pip install --force-reinstall --no-deps .` on all nodes"
        )
    if same:
        yield ok("packages", f"{', '.join(same)}: here and on every node that answered")


def _paths(answers: Answers, names: Mapping[str, str]) -> Iterator[Finding]:
    facts = answers.facts
    blind = {node: said["seen"] for node, said in facts.items() if said["seen"]}
    shut = {node: said["writable"] for node, said in facts.items() if said["writable"] and node not in blind}
    remedy = "mount the same folder at the same path on all nodes (NFS), and name it with --storage and out=FOLDER"
    for trouble, does in ((blind, "do not see the file just written here"), (shut, "cannot write")):
        for reason, nodes in groups(trouble):
            yield error("storage", f"{_named(nodes, names)} {does}: {reason}", remedy)
    if not blind and not shut and all(said["seen"] == "" for said in facts.values()):
        yield ok("storage", "every node that answered sees the file just written here, and writes beside it")
    lost = {node: ", ".join(said["unreadable"]) for node, said in facts.items() if said["unreadable"]}
    for paths, nodes in groups(lost):
        yield error("videos", f"{_named(nodes, names)} cannot read {paths}", "mount them at the same path on all nodes")


def _clocks(answers: Answers, names: Mapping[str, str]) -> Finding:
    """Drivers on other nodes count as dead by the age of their files (rayjepa.train.folder)."""
    remedy = "have a time server keep all clocks: systemctl enable --now chronyd, on the nodes and here"
    if not answers.clocks:
        return warning("clocks", "no node's clock could be read", remedy)
    off = {node: max(0.0, abs(ahead) - within) for node, (ahead, within) in answers.clocks.items()}
    worst = max(off, key=lambda node: off[node])
    ahead, within = answers.clocks[worst]
    found = f"the farthest is {ahead * 1e3:+.0f} ms from here, known within {within * 1e3:.0f} ms"
    if off[worst] < SKEW_S:
        return ok("clocks", found)
    late = [node for node in off if off[node] >= SKEW_S]
    what = f"{found}; {_named(late, names)} {'is' if len(late) == 1 else 'are'} {SKEW_S:g} s off or more"
    return (error if off[worst] > SILENCE_S / 2 else warning)("clocks", what, remedy)


def _room(answers: Answers, names: Mapping[str, str]) -> Iterator[Finding]:
    """Shared memory, disk of the session, open files."""
    nodes = {node.id: node for node in answers.head.nodes}
    facts = {nodes[node]: said for node, said in answers.facts.items() if node in nodes}
    stores = {node: node.resources.get("object_store_memory", 0.0) for node in facts}
    small = _where(facts, lambda node, said: said["shared"][0] < stores[node])
    least = min(said["shared"][0] for said in facts.values())
    if small:
        what = f"/dev/shm is smaller than the object store on {_named(small, names)} (smallest: {least / GIB:.1f} GiB)"
        remedy = "docker run --shm-size=…, an emptyDir of medium Memory, or `ray start --object-store-memory=BYTES`"
        yield warning("shared memory", what, remedy)
    else:
        store = min(stores.values())
        yield ok("shared memory", f"at least {least / GIB:.1f} GiB; smallest object store {store / GIB:.1f} GiB")
    full = _where(facts, lambda _, said: said["session"][1] < (1 - FULL) * said["session"][0])
    low = _where(facts, lambda node, said: said["session"][1] < LEAST_DISK and node.id not in full)
    free = min(said["session"][1] for said in facts.values()) / GIB
    remedy = "make room there, or `ray start --temp-dir=FOLDER` on a larger disk"
    if full:
        what = f"the disk of Ray's session is {FULL:.0%} full on {_named(full, names)}: Ray makes no more objects"
        yield error("disks", what, remedy)
    elif low:
        yield warning("disks", f"{_named(low, names)}: {free:.1f} GiB free where Ray keeps logs and objects", remedy)
    else:
        yield ok("disks", f"at least {free:.1f} GiB free where Ray keeps logs and spilled objects")
    spilled = sum(said["spilled"] for said in facts.values())
    if spilled:
        where = _where(facts, lambda _, said: said["spilled"] > 0)
        what = f"{spilled / GIB:.1f} GiB of objects lie on disk, on {_named(where, names)}: reading them is slow"
        yield warning("spilling", what, "a larger `ray start --object-store-memory=BYTES`, or a lower cluster.prefetch")
    few = _where(facts, lambda _, said: said["files"] < FILES_OF_A_RUN)
    if few:
        what = f"fewer than {FILES_OF_A_RUN} open files are allowed on {_named(few, names)}"
        yield warning("open files", what, "`ulimit -n 65536` before `ray start`; docker run --ulimit nofile=65536")


def _devices(answers: Answers, names: Mapping[str, str]) -> Iterator[Finding]:
    declared = {node.id: int(node.resources.get("GPU", 0)) for node in answers.head.nodes}
    absent = [node for node, said in answers.facts.items() if declared.get(node, 0) > said["gpus"]]
    idle = [node for node, said in answers.facts.items() if declared.get(node, 0) < said["gpus"]]
    if absent:
        what = f"{_named(absent, names)} offers GPUs that are not there: workers would find no device"
        yield error("GPUs", what, "`ray start` without --num-gpus counts them itself")
    if idle:
        what = f"{_named(idle, names)} has GPUs that Ray does not offer"
        yield warning("GPUs", what, "`ray start` there without --num-gpus, CUDA_VISIBLE_DEVICES unset")


def _stopping(answers: Answers) -> Iterator[Finding]:
    """How long `ray job stop` waits for a driver that saves. Jobs may run on any node; the head's value is told."""
    heads = [node.id for node in answers.head.nodes if node.is_head and node.id in answers.facts]
    for node in heads[:1]:
        value = answers.facts[node]["variable"]
        if not value or not value.isdecimal() or int(value) < LEAST_WAIT_S:
            what = f"`ray job stop` kills a driver after {value or 3} s, before a large model is saved"
            remedy = f"`rayjepa submit` sets {STOP_WAIT} for its job; for others export {STOP_WAIT}=600 before "
            yield warning("job stop", what, f"{remedy}`ray start`, or set it in the job's runtime_env env_vars")


def groups(values: Mapping[str, Hashable]) -> list[tuple[Any, list[str]]]:
    """Nodes by what they said, the most frequent first."""
    found: dict[Hashable, list[str]] = defaultdict(list)
    for node, value in values.items():
        found[value].append(node)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _where(facts: Mapping[Node, dict[str, Any]], is_so: Callable[[Node, dict[str, Any]], bool]) -> list[str]:
    return [node.id for node, said in facts.items() if is_so(node, said)]


def _names(head: Head) -> dict[str, str]:
    """Addresses by node id; several nodes on one machine are told apart by a part of it."""
    shared = Counter(node.address for node in head.nodes)
    return {n.id: n.address if shared[n.address] == 1 else f"{n.address}/{n.id[:6]}" for n in head.nodes}


def _named(nodes: Iterable[str], names: Mapping[str, str]) -> str:
    """`10.0.0.7`, or `12 nodes (10.0.0.7, 10.0.0.8, 10.0.0.9, …)`."""
    known = [names.get(node, node[:12]) for node in nodes]
    if len(known) == 1:
        return known[0]
    listed = ", ".join(known[:NAMED]) + (", …" if len(known) > NAMED else "")
    return f"{len(known)} nodes ({listed})"
