"""Frames kept for retraining: recorded, stored, sent to the desktop."""
