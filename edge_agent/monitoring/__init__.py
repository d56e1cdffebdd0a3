"""Figures about the machine and about what the model sees."""
