"""HTTP service that classifies images with a bundle. Needs the extra ``review``."""
