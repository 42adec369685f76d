"""The Kubernetes files against KubeRay's own schema, where RAYJEPA_KUBERAY_CRDS names a folder with its CRDs.

The CRDs are megabytes of another project, so they are not here: `helm-chart/kuberay-operator/crds` of KubeRay has them.
"""

import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

HOME = Path(__file__).parent.parent / "cluster" / "kuberay"


def as_json_schema(schema: Any) -> Any:
    """A CRD's schema as JSON schema: unknown fields are faults, as for kubectl; what has a default may be left out."""
    if not isinstance(schema, dict):
        return schema
    kept = {k: v for k, v in schema.items() if k in ("type", "required", "enum", "pattern", "minimum", "maximum")}
    kept |= {k: as_json_schema(schema[k]) for k in ("items", "additionalProperties") if k in schema}
    if fields := schema.get("properties"):
        kept["properties"] = {name: as_json_schema(one) for name, one in fields.items()}
        kept["required"] = [name for name in kept.get("required", []) if "default" not in fields[name]]
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    return kept


def faults(schema: Any, doc: Any) -> list[str]:
    found = jsonschema.Draft202012Validator(as_json_schema(schema)).iter_errors(doc)
    return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]


def test_a_field_that_the_schema_does_not_know_is_a_fault() -> None:
    port = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    group = {
        "type": "object",
        "required": ["name", "replicas"],
        "properties": {"name": {"type": "string"}, "port": port},
    }
    group["properties"] |= {
        "replicas": {"type": "integer", "default": 0},
        "labels": {"additionalProperties": {"type": "string"}},
    }
    assert faults(group, {"name": "a", "port": "http", "labels": {"x/y": "z"}}) == []
    assert faults(group, {"name": "a", "maxReplica": 3}) != []
    assert faults(group, {"port": 1}) != []
    assert faults(group, {"name": "a", "labels": {"x": 1}}) != []
    assert faults(group, {"name": "a", "port": 1.5}) != []


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_files_fit_kuberays_schema(name: str) -> None:
    folder = os.environ.get("RAYJEPA_KUBERAY_CRDS")
    if not folder:
        pytest.skip("RAYJEPA_KUBERAY_CRDS names no folder with KubeRay's CRDs")
    doc = yaml.safe_load((HOME / name / f"{name}.yaml").read_text())
    crds = [crd for path in Path(folder).glob("*.yaml") for crd in yaml.safe_load_all(path.read_text())]
    (crd,) = [crd for crd in crds if crd["spec"]["names"]["kind"] == doc["kind"]]
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert faults(schema, doc) == []
