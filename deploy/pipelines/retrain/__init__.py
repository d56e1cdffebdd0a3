"""Retraining with labelled frames: dataset version, training, comparison of champion and challenger."""
