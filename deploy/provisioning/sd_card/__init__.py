"""Prepares SD cards that provision the device at its first boot.

A card is prepared from an image of Raspberry Pi OS, or while its boot partition is mounted.
"""
