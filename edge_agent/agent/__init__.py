"""The agent: classifies camera frames, publishes labels, carries out commands and switches models while running."""
