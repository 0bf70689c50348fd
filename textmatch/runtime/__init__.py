"""What every process needs: settings, logs, metrics, gRPC server and channels, errors on the wire."""
