"""Quantizes models from float32 to int8, with further steps that are tried if int8 loses too much accuracy."""
