"""With the components for security every edge is encrypted, and who is at its ends is known."""

from __future__ import annotations

from typing import Any

from tests.support.kubernetes import Object, every_value, of_kind, pod_spec, workloads
from textmatch.runtime.settings import ServerSettings, StoreSettings, load

FOLDER = "/tls"
STORE_CLIENTS = ("matcher", "worker")


def test_every_pod_that_speaks_tls_has_its_certificate_where_the_settings_look(secured: list[Object]):
    shared = settings_of(secured)
    files = {value for name, value in shared.items() if "_TLS_" in name or name == "TEXTMATCH_QDRANT_CA"}
    assert files == {f"{FOLDER}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")}
    for workload in workloads(secured):
        name = workload["metadata"]["name"]
        volumes = {one["name"]: one for one in pod_spec(workload)["volumes"]}
        mounts = {one["name"]: one for one in pod_spec(workload)["containers"][0]["volumeMounts"]}
        assert volumes["tls"]["secret"]["secretName"] == f"{name}-tls"
        assert mounts["tls"] == {"name": "tls", "mountPath": FOLDER, "readOnly": True}
        # With a subPath a renewed certificate would not arrive.
        assert "subPath" not in mounts["tls"]


def test_servers_ask_for_certificates_and_keys_and_clients_show_theirs(secured: list[Object]):
    shared = settings_of(secured)
    server = load(ServerSettings, shared)
    tls = server.server_tls()
    assert tls is not None
    assert tls.client_ca is not None
    client = load(StoreSettings, shared)
    assert client.client_tls() is not None
    assert client.tls_cert
    assert client.qdrant_url.startswith("https://")
    assert client.qdrant_ca
    assert server.api_keys_file == "/api-keys/keys"
    for name in ("encoder", "matcher"):
        volumes = {one["name"]: one for one in pod_spec(workload(secured, name))["volumes"]}
        assert volumes["api-keys"]["secret"] == {"secretName": "textmatch-api-keys"}
    for name in STORE_CLIENTS:
        assert environment(secured, name)["TEXTMATCH_ENCODER_API_KEY"]["secretKeyRef"]


def test_no_probe_asks_in_the_clear(secured: list[Object]):
    for one in workloads(secured):
        [container] = pod_spec(one)["containers"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            assert "grpc" not in probe
            if "httpGet" in probe and probe["httpGet"]["port"] != "metrics":
                assert probe["httpGet"]["scheme"] == "HTTPS"
            if one["metadata"]["name"] == "redis":
                assert "--tls" in str(probe["exec"]["command"])


def test_the_stores_speak_tls_and_nothing_else(secured: list[Object]):
    qdrant = environment(secured, "qdrant")
    assert qdrant["QDRANT__SERVICE__ENABLE_TLS"] == qdrant["QDRANT__CLUSTER__P2P__ENABLE_TLS"] == "true"
    names = {one["metadata"]["name"] for one in workloads(secured)}
    if "redis" in names:
        [container] = pod_spec(workload(secured, "redis"))["containers"]
        assert {"--port 0", "--tls-port 6379"} <= set(container["args"])


def test_services_do_not_say_that_they_are_in_the_clear(secured: list[Object]):
    assert not [value for key, value in every_value(of_kind(secured, "Service")) if key == "appProtocol"]


def test_certificates_name_what_is_dialled(secured: list[Object]):
    names = {one["spec"]["secretName"]: one["spec"] for one in of_kind(secured, "Certificate")}
    shared = settings_of(secured)
    assert dialled(shared["TEXTMATCH_ENCODER_TARGET"]) in names["encoder-tls"]["dnsNames"]
    assert dialled(shared["TEXTMATCH_QDRANT_URL"]) in names["qdrant-tls"]["dnsNames"]
    [namespace] = of_kind(secured, "Namespace")
    assert f"matcher.{namespace['metadata']['name']}" in names["matcher-tls"]["dnsNames"]
    for probed in ("encoder-tls", "matcher-tls"):
        assert names[probed]["ipAddresses"] == ["127.0.0.1"]
    replicas = workload(secured, "qdrant")["spec"]["replicas"]
    nodes = {f"qdrant-{number}.qdrant-nodes" for number in range(replicas)}
    assert nodes <= set(names["qdrant-tls"]["dnsNames"])
    issued = {one["spec"]["issuerRef"]["name"] for one in of_kind(secured, "Certificate")}
    assert issued == {one["metadata"]["name"] for one in of_kind(secured, "Issuer")}


def settings_of(rendered: list[Object]) -> dict[str, str]:
    """What all our processes get."""
    [shared] = [
        one["data"] for one in of_kind(rendered, "ConfigMap") if "TEXTMATCH_ENCODER_TARGET" in one["data"]
    ]
    return dict(shared)


def workload(rendered: list[Object], name: str) -> Object:
    [found] = [one for one in workloads(rendered) if one["metadata"]["name"] == name]
    return found


def environment(rendered: list[Object], name: str) -> dict[str, Any]:
    [container] = pod_spec(workload(rendered, name))["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def dialled(target: str) -> str:
    return target.replace("dns:///", "x://").partition("://")[2].partition(":")[0]
