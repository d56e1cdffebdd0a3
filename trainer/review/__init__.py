"""Captured frames to labels: what lies in the folder, what is worth labelling first, a page to do it on."""
