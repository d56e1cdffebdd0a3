"""Inference: preprocessed image to scores, and scores to a label."""
