"""The agent: cameras to labels, commands, health, models replaced while it runs."""
