"""Manifests and code agree on ports, variables and metrics; what a site changes is in one file."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml

from services.encoder.settings import EncoderSettings
from services.gateway.settings import GatewaySettings
from services.matcher.settings import MatcherSettings
from tests.support.kubernetes import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Object,
    containers,
    of_kind,
    overlay_objects,
    workloads,
)
from textmatch.runtime.settings import load
from workers.settings import WorkerSettings

SETTINGS: dict[str, type[Any]] = {
    "encoder": EncoderSettings,
    "matcher": MatcherSettings,
    "worker": WorkerSettings,
    "gateway": GatewaySettings,
}
# What Qdrant, Redis and the libraries read.
OTHER_VARIABLES = re.compile(r"QDRANT_|REDISCLI_AUTH$|HF_")


def test_ports_are_the_defaults_of_the_code(rendered: list[Object]):
    for name, settings in _present(rendered).items():
        defaults = {field.name: field.default for field in dataclasses.fields(settings)}
        ports = {port["name"]: port["containerPort"] for port in _container(rendered, name)["ports"]}
        assert ports["metrics"] == defaults["metrics_port"]
        assert ports.get("grpc", ports.get("http")) == defaults.get("port")


def test_every_variable_is_a_setting(rendered: list[Object]):
    known = {name: set(_variables(settings)) for name, settings in SETTINGS.items()}
    everywhere = set().union(*known.values())
    [shared] = [
        one
        for one in of_kind(rendered, "ConfigMap")
        if one["metadata"]["name"].startswith("textmatch-") and "TEXTMATCH_ENCODER_TARGET" in one["data"]
    ]
    for variable in shared["data"]:
        assert variable in everywhere or OTHER_VARIABLES.match(variable), variable
    for workload in workloads(rendered):
        for container in containers(workload):
            for entry in container.get("env", []):
                own = known.get(container["name"], set())
                assert entry["name"] in own or OTHER_VARIABLES.match(entry["name"]), entry["name"]


def test_values_pass_the_checks_of_the_settings(rendered: list[Object]):
    [shared] = [
        one["data"] for one in of_kind(rendered, "ConfigMap") if "TEXTMATCH_ENCODER_TARGET" in one["data"]
    ]
    for name, settings in _present(rendered).items():
        plain = {
            entry["name"]: entry["value"] for entry in _container(rendered, name)["env"] if "value" in entry
        }
        loaded = load(settings, {**shared, **plain})
        assert loaded.host == "0.0.0.0"  # noqa: S104 -- a pod's own network


def test_targets_are_services_and_their_ports(rendered: list[Object]):
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in of_kind(rendered, "Service")
    }
    [shared] = [
        one["data"] for one in of_kind(rendered, "ConfigMap") if "TEXTMATCH_ENCODER_TARGET" in one["data"]
    ]
    targets = [shared["TEXTMATCH_ENCODER_TARGET"].removeprefix("dns:///")]
    targets.append(shared["TEXTMATCH_QDRANT_URL"].partition("://")[2])
    for host, _, port in (target.partition(":") for target in targets):
        assert int(port) in services[host]


def test_autoscaling_uses_metrics_that_exist():
    scaled = of_kind(overlay_objects("gpu"), "HorizontalPodAutoscaler", "ScaledObject")
    used = set(_metric_names(str([one["spec"] for one in scaled])))
    assert len(used) == 3
    assert used <= set(_metric_names((ROOT / "docs" / "metrics.md").read_text()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_site_changes_is_in_the_overlay_alone(overlay: str):
    folder = KUBERNETES / "overlays" / overlay
    assert [path.name for path in folder.iterdir()] == ["kustomization.yaml"]
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content["namespace"]
    assert {image["name"] for image in content["images"]} == {
        "textmatch/encoder",
        "textmatch/matcher",
        "textmatch/worker",
        "textmatch/gateway",
    }


def test_no_other_file_holds_what_a_site_changes():
    for path in [*(KUBERNETES / "base").glob("*.yaml"), *KUBERNETES.glob("components/*/*.yaml")]:
        text = path.read_text()
        assert "storageClassName" not in text, path
        assert not re.search(r"image: textmatch/\w+:", text), f"{path} names a version of our images"
        assert not re.search(r"^  namespace:", text, re.MULTILINE), path


def _present(rendered: list[Object]) -> dict[str, type[Any]]:
    """Settings of the processes that there are; the gateway is a component."""
    names = {one["metadata"]["name"] for one in workloads(rendered)}
    assert names >= SETTINGS.keys() - {"gateway"}
    return {name: settings for name, settings in SETTINGS.items() if name in names}


def _container(rendered: list[Object], name: str) -> Object:
    [found] = [one for one in workloads(rendered) if one["metadata"]["name"] == name]
    [container] = containers(found)
    return container


def _variables(settings: type[Any]) -> list[str]:
    return [field.metadata["variable"] for field in dataclasses.fields(settings)]


def _metric_names(text: str) -> list[str]:
    return re.findall(r"\btextmatch_[a-z_]+", text)
