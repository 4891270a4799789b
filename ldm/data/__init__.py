"""Tar shards in, batches out."""
