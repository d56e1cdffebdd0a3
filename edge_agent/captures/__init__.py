"""Captures: frames kept for retraining. They are recorded, stored, and transferred to the desktop."""
