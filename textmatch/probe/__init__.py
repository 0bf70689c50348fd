"""Asks a gRPC server of this pod for its health; over TLS, too, which kubelet's own probes do not speak."""
