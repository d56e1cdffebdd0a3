"""Labelled frames to the next model: a dataset version, a training from the old one, champion against challenger."""
