"""The commands of the deploy package, each in its own module."""
