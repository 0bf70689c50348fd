"""The two gRPC services: encoder and matcher."""
