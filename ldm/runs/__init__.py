"""A run's folder: its checkpoints, provenance and records."""
