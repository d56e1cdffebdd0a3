"""Bundles to devices, and the commands that join the stages."""
