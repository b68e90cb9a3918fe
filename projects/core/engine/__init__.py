"""Command line, configs, checkpoints, precision and hooks of all projects."""
