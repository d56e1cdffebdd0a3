"""A card that comes up as a device at its first boot: an image of Raspberry Pi OS, or a card's boot partition."""
