"""Renders HTML reports of the measurements of `edgeloop bench`."""
