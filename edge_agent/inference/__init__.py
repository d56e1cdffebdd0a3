"""A prepared image to scores, and scores to a label."""
