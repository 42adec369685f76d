"""The Kubernetes files, by rules that KubeRay's operator and our security ask for; each rule has a file that breaks it.

Nothing here asks a Kubernetes; what its API server would say of a field is in test_kuberay_schema.py.
"""

import copy
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayjepa.config import resolve
from rayjepa.on_ray.placement import Node, decode_part, train_part, unplaced

HOME = Path(__file__).parent.parent / "cluster"
LABEL = re.compile(r"([a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
# The operator's limits: it appends to the names.
LONGEST = {"RayCluster": 53, "RayJob": 47}
OWN_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}

Document = dict[str, Any]


def load(name: str) -> Document:
    return yaml.safe_load((HOME / "kuberay" / name).read_text())


CLUSTER, JOB, POLICY = load("raycluster/raycluster.yaml"), load("rayjob/rayjob.yaml"), load("base/networkpolicy.yaml")


def quantity(text: str) -> float:
    unit = UNITS.get(text[-2:], 1)
    return float(text[:-2] if unit > 1 else text) * unit


def spec_of(doc: Document) -> Document:
    return doc["spec"] if doc["kind"] == "RayCluster" else doc["spec"]["rayClusterSpec"]


def groups_of(doc: Document) -> dict[str, Document]:
    """Head and worker groups by name."""
    spec = spec_of(doc)
    return {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def operator_rules(doc: Document) -> Iterator[str]:
    """What the operator refuses when it meets the file, though the CRD allows it."""
    name, spec = doc["metadata"]["name"], spec_of(doc)
    if len(name) > LONGEST[doc["kind"]] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"name {name}"
    scales = spec.get("enableInTreeAutoscaling", False)
    v2 = scales and spec.get("autoscalerOptions", {}).get("version") == "v2"
    for group, part in groups_of(doc).items():
        pod, params = part["template"]["spec"], part["rayStartParams"]
        if not pod["containers"]:
            yield f"{group}: no container"
        if part.get("resources") and OWN_RESOURCES & params.keys():
            yield f"{group}: resources twice"
        if "labels" in params:
            yield f"{group}: labels in rayStartParams"
        if not all(LABEL.fullmatch(word) for pair in part.get("labels", {}).items() for word in pair):
            yield f"{group}: label's form"
        if v2 and pod.get("restartPolicy", "Never") != "Never":
            yield f"{group}: restartPolicy under autoscaler v2"
        if any(env["name"] == "RAY_enable_autoscaler_v2" for c in pod["containers"] for env in c.get("env", [])):
            yield f"{group}: RAY_enable_autoscaler_v2 beside autoscalerOptions.version"
        if group != "head":
            if not 0 <= part["minReplicas"] <= part["replicas"] <= part["maxReplicas"]:
                yield f"{group}: replicas"
            if part.get("suspend") and scales:
                yield f"{group}: suspended under an autoscaler"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = [int(n) for n in str(spec.get("rayVersion") or "0.0").split(".")[:2]]
        if version < [2, 52]:
            yield "token needs rayVersion 2.52"
    if doc["kind"] == "RayJob":
        yield from job_rules(doc["spec"])


def job_rules(spec: Document) -> Iterator[str]:
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "a job that keeps its cluster cannot be suspended"
    if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
        yield "one of clusterSelector and rayClusterSpec"
    if spec.get("shutdownAfterJobFinishes") and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "shutdownAfterJobFinishes beside deletionRules"
    if spec.get("submissionMode") == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "SidecarMode takes no submitterPodTemplate"
    if spec.get("backoffLimit", 0) < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "limits below 0"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if spec_of({"kind": "RayJob", "spec": spec}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "no enableK8sTokenAuth for jobs"


def house_rules(doc: Document) -> Iterator[str]:
    """What we ask of our own files: confined pods, a head that works for nobody, room for objects, shared storage."""
    spec = spec_of(doc)
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "no token"
    if spec.get("rayVersion") != re.search(r"^ray==(.+)$", (HOME / "constraints.txt").read_text(), re.M)[1]:  # type: ignore[index]
        yield "rayVersion is not that of constraints.txt"
    if spec["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: work on it"
    if spec["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        yield "head: reachable from outside"
    pods = {group: part["template"]["spec"] for group, part in groups_of(doc).items()}
    submitter = doc["spec"].get("submitterPodTemplate")
    for group, pod in (pods | ({"submitter": submitter["spec"]} if submitter else {})).items():
        yield from (f"{group}: {fault}" for fault in confinement(pod))
        if group != "head" and pod.get("automountServiceAccountToken", True):
            yield f"{group}: has the rights of a service account"
    for group, pod in pods.items():
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        if volumes[mounts.get("/shared", "shm")].get("persistentVolumeClaim", {}).get("claimName") != "rayjepa-shared":
            yield f"{group}: no shared storage"
        shm = quantity(volumes[mounts["/dev/shm"]]["emptyDir"]["sizeLimit"])
        store = float(groups_of(doc)[group]["rayStartParams"]["object-store-memory"])
        if not store < shm < quantity(container["resources"]["limits"]["memory"]):
            yield f"{group}: object store, /dev/shm and memory do not fit into each other"


def confinement(pod: Document) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if not context.get("runAsNonRoot") or context.get("runAsUser", 0) == 0:
        yield "may be root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if pod.get("hostNetwork") or any("hostPath" in volume for volume in pod.get("volumes", [])):
        yield "the host's network or files"
    for container in pod["containers"]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation", True) or own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield "may gain rights"
        if container["image"] != "rayjepa":
            yield "an image that the kustomization does not name"


def policy_rules(doc: Document) -> Iterator[str]:
    if doc["spec"]["podSelector"] != {"matchLabels": {"ray.io/is-ray-node": "yes"}}:
        yield "does not hold for Ray's nodes"
    for rule in doc["spec"]["ingress"]:
        if not rule.get("from") or any(
            not (peer.get("podSelector") or peer.get("namespaceSelector")) for peer in rule["from"]
        ):
            yield "open to all"


@pytest.mark.parametrize("doc", [CLUSTER, JOB], ids=["cluster", "job"])
def test_the_files_keep_the_rules(doc: Document) -> None:
    assert [*operator_rules(doc), *house_rules(doc), *policy_rules(POLICY)] == []


def change(path: str, value: object) -> Callable[[Document], None]:
    """A change of one field, by the path to it; None takes the field away."""

    def apply(doc: Document) -> None:
        at: Any = doc
        *inner, last = [int(word) if word.isdigit() else word for word in path.split("|")]
        for word in inner:
            at = at.setdefault(word, {}) if isinstance(at, dict) else at[word]
        if value is None:
            del at[last]
        else:
            at[last] = value

    return apply


C = "spec|rayClusterSpec|"
HEAD, DECODE, TRAIN = f"{C}headGroupSpec|", f"{C}workerGroupSpecs|0|", f"{C}workerGroupSpecs|1|"
POD, BOX = "template|spec|", "template|spec|containers|0|"
BROKEN = [
    ("metadata|name", "Rayjepa", "name Rayjepa"),
    ("metadata|name", "r" * 48, "name r"),
    (f"{HEAD}{POD}containers", [], "head: no container"),
    (f"{HEAD}resources", {"CPU": "0"}, "head: resources twice"),
    (f"{DECODE}rayStartParams|labels", "a=b", "decode: labels in rayStartParams"),
    (f"{DECODE}labels|rayjepa.io/role", "de code", "decode: label's form"),
    (f"{TRAIN}{POD}restartPolicy", "Always", "train-h100: restartPolicy under autoscaler v2"),
    (f"{HEAD}{BOX}env", [{"name": "RAY_enable_autoscaler_v2", "value": "1"}], "head: RAY_enable_autoscaler_v2"),
    (f"{DECODE}minReplicas", 9, "decode: replicas"),
    (f"{DECODE}suspend", True, "decode: suspended under an autoscaler"),
    (f"{C}rayVersion", "2.51.0", "token needs rayVersion 2.52"),
    (f"{C}authOptions|enableK8sTokenAuth", True, "no enableK8sTokenAuth for jobs"),
    ("spec|clusterSelector", {"ray.io/cluster": "rayjepa"}, "one of clusterSelector and rayClusterSpec"),
    ("spec|deletionStrategy", {"deletionRules": [{}]}, "shutdownAfterJobFinishes beside deletionRules"),
    ("spec|submissionMode", "SidecarMode", "SidecarMode takes no submitterPodTemplate"),
    ("spec|backoffLimit", -1, "limits below 0"),
    ("spec|shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished without shutdownAfterJobFinishes"),
    (f"{C}authOptions", None, "no token"),
    (f"{C}rayVersion", "2.59.0", "rayVersion is not that of constraints.txt"),
    (f"{HEAD}rayStartParams|num-cpus", "8", "head: work on it"),
    (f"{HEAD}serviceType", "LoadBalancer", "head: reachable from outside"),
    (f"{TRAIN}{POD}securityContext|runAsUser", 0, "train-h100: may be root"),
    ("spec|submitterPodTemplate|spec|securityContext|runAsNonRoot", False, "submitter: may be root"),
    (f"{DECODE}{POD}securityContext|seccompProfile", None, "decode: no seccomp profile"),
    (f"{TRAIN}{POD}hostNetwork", True, "train-h100: the host's network or files"),
    (f"{HEAD}{BOX}securityContext|capabilities|drop", ["NET_RAW"], "head: may gain rights"),
    (f"{DECODE}{BOX}image", "rayproject/ray:latest", "decode: an image that the kustomization does not name"),
    (f"{DECODE}{POD}automountServiceAccountToken", None, "decode: has the rights of a service account"),
    (f"{TRAIN}{BOX}volumeMounts|0|mountPath", "/data", "train-h100: no shared storage"),
    (f"{TRAIN}{POD}volumes|1|emptyDir|sizeLimit", "100Gi", "train-h100: object store"),
    (f"{TRAIN}{BOX}resources|limits|memory", "200Gi", "train-h100: object store"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "fault"), BROKEN, ids=[fault for _, _, fault in BROKEN])
def test_each_rule_finds_the_file_that_breaks_it(path: str, value: object, fault: str) -> None:
    broken = copy.deepcopy(JOB)
    change(path, value)(broken)
    rules = operator_rules(broken)
    found = [next(rules)] if fault == "head: no container" else [*rules, *house_rules(broken)]
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec|podSelector", {}), ("spec|ingress|1|from", None), ("spec|ingress|0|from|0", {"podSelector": {}})],
)
def test_a_policy_that_lets_all_in_is_found(path: str, value: object) -> None:
    broken = copy.deepcopy(POLICY)
    change(path, value)(broken)
    assert list(policy_rules(broken))


def test_the_job_has_the_cluster_that_stays() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]


def test_the_groups_hold_the_job_at_their_largest() -> None:
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "rayjepa.cli", "pretrain"]
    run = resolve(words[words.index("--preset") + 1], dict(word.split("=", 1) for word in words if "=" in word))
    nodes = []
    for name, group in groups_of(JOB).items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        total = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        node = Node(total=total, free=total, labels=group.get("labels", {}))
        nodes += [node] * (0 if name == "head" else group["maxReplicas"])
    parts = [train_part(run, gpus=True, labels=True), decode_part(run, labels=True)]
    assert unplaced(parts, nodes, idle=True) == []


@pytest.mark.parametrize("folder", ["raycluster", "rayjob"])
def test_kustomize_builds_one_namespace_and_one_image(folder: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    command = ["kubectl", "kustomize", str(HOME / "kuberay" / folder)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    docs = list(yaml.safe_load_all(built))
    assert len(docs) == 4
    assert {doc["metadata"].get("namespace", doc["metadata"]["name"]) for doc in docs} == {"rayjepa"}
    assert set(re.findall(r"image: (\S+)", built)) == {f"registry.example.com/rayjepa@sha256:{'0' * 64}"}
