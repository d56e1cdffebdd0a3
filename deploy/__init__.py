"""Deploys bundles to devices, and provides the commands that join several stages."""
