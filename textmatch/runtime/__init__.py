"""What every process needs around its own work: settings, logs, metrics, server, channel, wire errors."""
