"""What runs on the device itself, with its own Python and nothing else installed."""
