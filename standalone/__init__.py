"""Everything on one machine, without Docker: supervisor, Qdrant Edge server, demo."""

import os

# The supervisor forks while its health probes use gRPC, whose fork handlers would only complain about that:
# a child calls exec at once. Read by gRPC when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
