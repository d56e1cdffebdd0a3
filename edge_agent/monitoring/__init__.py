"""Measurements of the machine and of the model's scores."""
