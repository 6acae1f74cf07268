"""Sweeps on a cluster that is reached over HTTP, by Ray Jobs."""
