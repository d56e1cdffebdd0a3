"""Pipelines that join several stages."""
