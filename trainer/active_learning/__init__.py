"""Active learning: which captured frames are most worth labelling, and the annotations of people."""
