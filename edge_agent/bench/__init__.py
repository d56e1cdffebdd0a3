"""Benchmark: latency of models on this machine, with checks of whether the measurement is reliable."""
