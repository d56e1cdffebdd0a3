"""Accesses devices over SSH: reads the inventory, works on single devices, and rolls out bundles to many devices."""
