"""Everything on one machine, without Docker: supervisor, Qdrant Edge server, demo."""

import os

# The supervisor forks while its health probes use gRPC. gRPC's fork handlers would log warnings, but a child
# calls exec at once. gRPC reads the variable when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
