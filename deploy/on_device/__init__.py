"""Scripts that run on the device with its own Python and only the standard library."""
