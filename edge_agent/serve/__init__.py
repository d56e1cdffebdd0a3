"""A bundle behind HTTP: a picture in, labels out. Needs the extra ``review``."""
