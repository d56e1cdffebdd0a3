"""Reports of `edgeloop bench` as a page to look at."""
