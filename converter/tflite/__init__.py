"""Converts networks to TFLite, edits their graphs, writes their metadata, and finds operations that XNNPACK lacks."""
