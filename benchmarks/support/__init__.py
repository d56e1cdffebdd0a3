"""Shared parts of the benchmarks: images, figures, other runtimes."""
