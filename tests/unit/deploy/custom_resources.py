"""Schemas of the custom resources we use, for the fields we use; any other field is refused.

After the reference of KEDA's ScaledObject, of the Prometheus operator's PodMonitor and PrometheusRule, and of
cert-manager's Certificate and Issuer.
"""

from __future__ import annotations

from typing import Any

_STRING = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


_TRIGGER = _closed(
    {
        "type": {"const": "prometheus"},
        "name": {"type": "string", "pattern": "^[a-z-]+$"},
        "metadata": {
            **_closed(
                {
                    "serverAddress": {"type": "string", "pattern": "^https?://"},
                    "query": _STRING,
                    # Numbers, as strings.
                    "threshold": {"type": "string", "pattern": r"^[0-9.]+$"},
                    "activationThreshold": {"type": "string", "pattern": r"^[0-9.]+$"},
                },
                "serverAddress",
                "query",
                "threshold",
            )
        },
    },
    "type",
    "metadata",
)
_SCALED_OBJECT = _closed(
    {
        "scaleTargetRef": _closed({"apiVersion": _STRING, "kind": _STRING, "name": _STRING}, "name"),
        "minReplicaCount": _COUNT,
        "maxReplicaCount": _COUNT,
        "pollingInterval": _COUNT,
        "cooldownPeriod": _COUNT,
        "fallback": _closed({"failureThreshold": _COUNT, "replicas": _COUNT}, "failureThreshold", "replicas"),
        "triggers": _list_of(_TRIGGER),
    },
    "scaleTargetRef",
    "triggers",
)
_EXPRESSION = _closed(
    {"key": _STRING, "operator": {"const": "In"}, "values": _list_of(_STRING)}, "key", "operator"
)
_POD_MONITOR = _closed(
    {
        "selector": _closed({"matchLabels": _STRINGS, "matchExpressions": _list_of(_EXPRESSION)}),
        "podMetricsEndpoints": _list_of(
            _closed({"port": _STRING, "path": _STRING, "interval": _DURATION}, "port")
        ),
    },
    "selector",
    "podMetricsEndpoints",
)
_RECORDING = _closed({"record": _STRING, "expr": _STRING, "labels": _STRINGS}, "record", "expr")
_ALERT = _closed(
    {"alert": _STRING, "expr": _STRING, "for": _DURATION, "labels": _STRINGS, "annotations": _STRINGS},
    "alert",
    "expr",
)
_PROMETHEUS_RULE = _closed(
    {
        "groups": _list_of(
            _closed({"name": _STRING, "rules": _list_of({"oneOf": [_RECORDING, _ALERT]})}, "name")
        )
    },
    "groups",
)

_HOURS = {"type": "string", "pattern": "^[0-9]+h$"}
_CERTIFICATE = _closed(
    {
        "secretName": _STRING,
        "isCA": {"type": "boolean"},
        "commonName": {"type": "string", "maxLength": 64},
        "duration": _HOURS,
        "renewBefore": _HOURS,
        "privateKey": _closed(
            {
                "algorithm": {"enum": ["RSA", "ECDSA", "Ed25519"]},
                "size": _COUNT,
                "rotationPolicy": {"enum": ["Never", "Always"]},
            }
        ),
        "usages": _list_of({"enum": ["digital signature", "key encipherment", "server auth", "client auth"]}),
        "dnsNames": _list_of({"type": "string", "pattern": r"^[a-z0-9.-]+$"}),
        "ipAddresses": _list_of({"type": "string", "format": "ipv4"}),
        "issuerRef": _closed({"name": _STRING, "kind": {"enum": ["Issuer", "ClusterIssuer"]}}, "name"),
    },
    "secretName",
    "issuerRef",
)
_ISSUER = {
    "oneOf": [
        _closed({"selfSigned": _closed({})}, "selfSigned"),
        _closed({"ca": _closed({"secretName": _STRING}, "secretName")}, "ca"),
    ]
}


def _resource(api_version: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _closed(
        {"name": _STRING, "namespace": _STRING, "labels": _STRINGS, "annotations": _STRINGS}, "name"
    )
    return _closed(
        {"apiVersion": {"const": api_version}, "kind": _STRING, "metadata": metadata, "spec": spec},
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    )


SCHEMAS = {
    "ScaledObject": _resource("keda.sh/v1alpha1", _SCALED_OBJECT),
    "Certificate": _resource("cert-manager.io/v1", _CERTIFICATE),
    "Issuer": _resource("cert-manager.io/v1", _ISSUER),
    "PodMonitor": _resource("monitoring.coreos.com/v1", _POD_MONITOR),
    "PrometheusRule": _resource("monitoring.coreos.com/v1", _PROMETHEUS_RULE),
}
