"""What the kustomizations in deploy/k8s render to."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "k8s"
SECURITY_COMPONENTS = tuple(
    KUBERNETES / "components" / name for name in ("api-keys", "tls", "tls-cert-manager")
)
GATEWAY_COMPONENT = KUBERNETES / "components" / "gateway"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
COMPONENTS = (
    *sorted(path for path in (KUBERNETES / "components").iterdir() if path.is_dir()),
    ROOT / "deploy" / "monitoring",
)

Object = dict[str, Any]


@cache
def kustomize(directory: Path) -> str:
    """The text that a kustomization renders to; skips the test where kubectl is missing."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on PATH; see https://kubernetes.io/docs/tasks/tools/")
    command = ["kubectl", "kustomize", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def objects(directory: Path) -> list[Object]:
    """The objects that a kustomization renders to."""
    return list(yaml.safe_load_all(kustomize(directory)))


def overlay_objects(overlay: str) -> list[Object]:
    """The objects of one of our overlays."""
    return objects(KUBERNETES / "overlays" / overlay)


def write_combination(folder: Path, overlay: str, *components: Path) -> None:
    """Write a kustomization of an overlay with more components, as a site may do."""
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(KUBERNETES / "overlays" / overlay, folder.resolve())],
        "components": [os.path.relpath(component, folder.resolve()) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))


def of_kind(found: Sequence[Object], *kinds: str) -> list[Object]:
    """Those of these kinds."""
    return [one for one in found if one["kind"] in kinds]


def workloads(found: Sequence[Object]) -> list[Object]:
    """Objects that create pods."""
    return of_kind(found, "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")


def pod_spec(workload: Object) -> Object:
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def pod_labels(workload: Object) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Object) -> list[Object]:
    """All containers of a workload's pods, those that only initialise among them."""
    spec = pod_spec(workload)
    return [*spec.get("initContainers", []), *spec["containers"]]


def every_value(node: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of every entry of nested mappings."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from every_value(value)
    if isinstance(node, list):
        for item in node:
            yield from every_value(item)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector, or the plain mapping of a Service, selects pods with these labels."""
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )
