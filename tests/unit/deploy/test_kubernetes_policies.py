"""What a security review and a platform engineer ask of every object."""

from __future__ import annotations

import re

import pytest

from tests.support.kubernetes import (
    Object,
    containers,
    every_value,
    of_kind,
    pod_labels,
    pod_spec,
    selects,
    workloads,
)

_SPARE_SECONDS = 5


def test_every_object_says_what_it_is_for(rendered: list[Object]):
    for one in rendered:
        about = one["metadata"].get("annotations", {}).get("textmatch.dev/about", "")
        assert about, f"{one['kind']} {one['metadata']['name']} has no textmatch.dev/about"


def test_pods_are_restricted(rendered: list[Object]):
    [namespace] = of_kind(rendered, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in workloads(rendered):
        spec = pod_spec(workload)
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in containers(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context


def test_pods_have_an_identity_without_a_token(rendered: list[Object]):
    accounts = {one["metadata"]["name"]: one for one in of_kind(rendered, "ServiceAccount")}
    for workload in workloads(rendered):
        spec = pod_spec(workload)
        assert spec["automountServiceAccountToken"] is False
        assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert not of_kind(rendered, "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


def test_resources_are_asked_for_and_limited(rendered: list[Object]):
    for workload in workloads(rendered):
        for container in containers(workload):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        for volume in pod_spec(workload).get("volumes", []):
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), volume["name"]


def test_images_are_pinned(rendered: list[Object]):
    for workload in workloads(rendered):
        for container in containers(workload):
            assert re.search(r":v?\d+\.\d+\.\d+\S*$|@sha256:[0-9a-f]{64}$", container["image"])


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_are_present(rendered: list[Object], probe: str):
    for workload in workloads(rendered):
        for container in pod_spec(workload)["containers"]:
            assert probe in container, f"{container['name']} has no {probe}"


def test_servers_are_asked_for_the_health_of_their_service(rendered: list[Object]):
    for name, service in (("encoder", "EncoderService"), ("matcher", "MatcherService")):
        [container] = pod_spec(_workload(rendered, name))["containers"]
        assert _asked_service(container["readinessProbe"]) == f"textmatch.v1.{service}"
        # One that is late with one answer is busy, not dead.
        assert container["livenessProbe"]["failureThreshold"] >= 3
        assert not _asked_service(container["livenessProbe"])


def test_a_pod_has_time_to_drain(rendered: list[Object]):
    for workload in workloads(rendered):
        spec = pod_spec(workload)
        for container in spec["containers"]:
            before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            plain = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
            drain = float(plain.get("TEXTMATCH_DRAIN_SECONDS", 0))
            assert spec["terminationGracePeriodSeconds"] >= before + drain + _SPARE_SECONDS
            if drain and "lifecycle" in container:
                probe = container["readinessProbe"]
                # Endpoints learn of it before calls are refused.
                assert before >= probe["periodSeconds"]


def test_secrets_come_by_reference_and_the_namespace_says_which(rendered: list[Object]):
    assert not of_kind(rendered, "Secret")
    [namespace] = of_kind(rendered, "Namespace")
    annotations = namespace["metadata"]["annotations"]
    first = " ".join(text for name, text in annotations.items() if name.startswith("textmatch.dev/first"))
    keys = {value["key"] for name, value in every_value(rendered) if name == "secretKeyRef"}
    assert keys
    assert all(key in first for key in keys)
    for workload in workloads(rendered):
        for container in containers(workload):
            for entry in container.get("env", []):
                if re.search("(API_KEY|PASSWORD|AUTH|REDIS_URL)$", entry["name"]):
                    assert "secretKeyRef" in entry["valueFrom"], entry["name"]


def test_selectors_select_pods_that_exist(rendered: list[Object]):
    pods = [pod_labels(workload) for workload in workloads(rendered)]
    selectors = [
        selector
        for one in of_kind(
            rendered, "Service", "PodDisruptionBudget", "Deployment", "StatefulSet", "PodMonitor"
        )
        for selector in [one["spec"]["selector"]]
    ]
    selectors += [
        value for _, value in every_value(rendered) if isinstance(value, dict) and "topologyKey" in value
    ]
    for selector in selectors:
        chosen = selector.get("labelSelector", selector)
        assert any(selects(chosen, labels) for labels in pods), chosen


def test_service_ports_are_ports_of_the_pods(rendered: list[Object]):
    for service in of_kind(rendered, "Service"):
        [chosen] = [
            one for one in workloads(rendered) if selects(service["spec"]["selector"], pod_labels(one))
        ]
        named = {port["name"]: port["containerPort"] for one in containers(chosen) for port in one["ports"]}
        for port in service["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]


def test_services_for_balancing_clients_are_headless(rendered: list[Object]):
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(rendered, "Service")}
    assert services["encoder"]["clusterIP"] == services["matcher"]["clusterIP"] == "None"


def test_nothing_is_reachable_that_no_policy_names(rendered: list[Object]):
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(rendered, "NetworkPolicy")}
    assert policies["nothing-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for workload in workloads(rendered):
        labels = pod_labels(workload)
        assert any(
            policy["podSelector"] and selects(policy["podSelector"], labels) for policy in policies.values()
        )
    assert "0.0.0.0/0" not in str(policies)
    for policy in policies.values():
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert rule["ports"], "every edge has a port"


def test_what_scales_and_what_is_disrupted_exists(rendered: list[Object]):
    names = {one["metadata"]["name"] for one in workloads(rendered)}
    scaled = of_kind(rendered, "HorizontalPodAutoscaler", "ScaledObject")
    for one in scaled:
        target = one["spec"]["scaleTargetRef"]["name"]
        assert target in names
        # Two that set the number of replicas would undo one another.
        assert "replicas" not in _workload(rendered, target)["spec"]
    budgets = {one["metadata"]["name"] for one in of_kind(rendered, "PodDisruptionBudget")}
    assert {"encoder", "matcher", "worker", "qdrant"} <= budgets


def _workload(rendered: list[Object], name: str) -> Object:
    [found] = [one for one in workloads(rendered) if one["metadata"]["name"] == name]
    return found


def _asked_service(probe: Object) -> str:
    """The service whose health a probe of a gRPC server asks for; empty: the server as a whole."""
    if "grpc" in probe:
        return str(probe["grpc"].get("service", ""))
    python, option, module, _, *service = probe["exec"]["command"]
    assert (python, option, module) == ("python", "-m", "textmatch.probe")
    return "".join(service)
