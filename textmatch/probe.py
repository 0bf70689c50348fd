"""`python -m textmatch.probe PORT [SERVICE]`: exits with 0 if the gRPC server there is SERVING, else with 1.

For health checks over TLS, which kubelet's own gRPC probes do not support.
"""

from __future__ import annotations

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from textmatch.errors import TextMatchError
from textmatch.runtime.channel import open_channel
from textmatch.runtime.settings import ClientTlsSettings, load

_TIMEOUT_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Check the server at 127.0.0.1; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m textmatch.probe", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("service", nargs="?", default="", help="full name of a service; default: the server")
    options = parser.parse_args(arguments)
    try:
        tls = load(ClientTlsSettings).client_tls()
        with open_channel(f"127.0.0.1:{options.port}", tls) as channel:
            request = health_pb2.HealthCheckRequest(service=options.service)
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_SECONDS)
    except TextMatchError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"probe: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    if response.status == health_pb2.HealthCheckResponse.SERVING:
        return 0
    print(f"probe: {health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
