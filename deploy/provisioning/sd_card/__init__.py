"""SD cards that provision the device at its first boot, prepared from an image of Raspberry Pi OS or a mounted card."""
