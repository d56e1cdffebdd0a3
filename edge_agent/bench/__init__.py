"""Latency of a model on this machine, and how far it can be trusted."""
