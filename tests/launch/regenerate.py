"""Writes jobset_schema.json: what Kubernetes and JobSet accept, as one JSON schema.

  pip install kubernetes-validate==1.37.0 kubeflow-trainer-api==2.3.0
  python tests/launch/regenerate.py

Both packages are under Apache-2.0. The first has the definitions of Kubernetes 1.37, which allow no
unknown field; the second those of JobSet. Descriptions are left out, and what a JobSet cannot hold.
"""

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "jobset_schema.json"
# kubernetes-validate's name for the folder of a version, whose objects are closed.
_KUBERNETES = "kubernetes-json-schema/v1.37.0-local-strict/_definitions.json"
_SHARED = {
    "IoK8sApiBatchV1JobTemplateSpec": "io.k8s.api.batch.v1.JobTemplateSpec",
    "IoK8sApimachineryPkgApisMetaV1ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "IoK8sApiCoreV1PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
}
# Only the descriptions of these fields say what is allowed.
_ACTIONS = (
    *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
)
_NAME = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
_VERSION = "jobset.x-k8s.io/v1alpha2"


def _jobset() -> dict[str, Any]:
    """JobSet's definitions; those of Kubernetes are only named."""
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    whole = JobsetV1alpha2JobSet.model_json_schema(by_alias=True)
    found = {name: x for name, x in whole.pop("$defs").items() if name.startswith("Jobset")}
    for definition in found.values():
        definition["additionalProperties"] = False
    rule = found["JobsetV1alpha2FailurePolicyRule"]["properties"]
    for action in _ACTIONS:
        assert action in rule["action"]["description"], action
    rule["action"]["enum"], rule["name"]["pattern"] = list(_ACTIONS), _NAME
    whole["properties"]["apiVersion"] = {"const": _VERSION}
    whole["properties"]["kind"] = {"const": "JobSet"}
    whole |= {"additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"]}
    return found | {"JobSet": whole}


def _short(value: Any) -> Any:
    """Without what does not decide, and with references into one file."""
    if isinstance(value, list):
        return [_short(x) for x in value]
    if not isinstance(value, dict):
        return value
    # A property may have any name, a title's too.
    out = {}
    for name, x in value.items():
        if name == "properties":
            out[name] = {key: _short(y) for key, y in x.items() if key != "status"}
        elif name == "$ref":
            last = x.rpartition("/")[2]
            out[name] = f"#/$defs/{_SHARED.get(last, last)}"
        elif name not in ("description", "title", "default") and not name.startswith("x-"):
            out[name] = _short(x)
    return out


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, x in value.items():
            if name == "$ref":
                yield x.removeprefix("#/$defs/")
            else:
                yield from _references(x)
    elif isinstance(value, list):
        for x in value:
            yield from _references(x)


def schema() -> dict[str, Any]:
    """The whole schema, which has nothing that a JobSet does not reach."""
    text = importlib.resources.files("kubernetes_validate").joinpath(_KUBERNETES).read_text()
    every = _short(json.loads(text)["$defs"]) | _short(_jobset())
    reached, left = set(), ["JobSet"]
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += _references(every[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Kubernetes 1.37 and JobSet v1alpha2, by tests/launch/regenerate.py",
        "$ref": "#/$defs/JobSet",
        "$defs": {name: every[name] for name in sorted(reached)},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(schema(), indent=1) + "\n")
