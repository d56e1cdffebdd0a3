"""Commands of the deploy package, one module each."""
