"""HTML reports of `edgeloop bench`."""
