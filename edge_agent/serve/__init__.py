"""A bundle behind HTTP: an image in, labels out. Needs the extra ``review``."""
