"""Provisions devices: installs edgeloop on a machine over SSH or from a prepared SD card."""
