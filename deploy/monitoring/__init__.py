"""Prometheus rules and Grafana dashboards, written by `make monitoring`."""
