"""Retrains with labelled frames: makes a dataset version, trains a challenger and compares it with the champion."""
