"""Devices over SSH: the inventory, one device, and roll-outs to many."""
