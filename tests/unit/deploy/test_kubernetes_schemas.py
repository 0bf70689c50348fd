"""Every overlay, alone and with each component, renders to what Kubernetes accepts."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.kubernetes import (
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    Object,
    kustomize,
    objects,
    write_combination,
)
from tests.unit.deploy.custom_resources import SCHEMAS

# From the first with a preStop that sleeps to the newest known.
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid_in_every_version(rendered: list[Object], version: str):
    for one in rendered:
        if one["kind"] not in SCHEMAS:
            kubernetes_validate.validate(one, version, strict=True)


def test_custom_resources_have_the_fields_of_their_definitions(rendered: list[Object]):
    for one in rendered:
        if one["kind"] in SCHEMAS:
            jsonschema.validate(one, SCHEMAS[one["kind"]])


def _addable() -> list[tuple[str, Path]]:
    """Each overlay with each component that it has not got."""
    return [
        (overlay, component)
        for overlay in OVERLAYS
        for component in COMPONENTS
        if component not in _components(overlay)
    ]


def _components(overlay: str) -> set[Path]:
    folder = KUBERNETES / "overlays" / overlay
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return {(folder / component).resolve() for component in content["components"]}


@pytest.mark.parametrize(("overlay", "component"), _addable(), ids=lambda part: getattr(part, "name", part))
def test_a_component_can_be_added(overlay: str, component: Path, tmp_path: Path):
    write_combination(tmp_path, overlay, component)
    added = [one for one in objects(tmp_path) if one["kind"] not in SCHEMAS]
    for one in added:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    assert kustomize(tmp_path) != kustomize(KUBERNETES / "overlays" / overlay)


def test_the_validator_refuses_an_unknown_field():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containrs": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[0], strict=True)
