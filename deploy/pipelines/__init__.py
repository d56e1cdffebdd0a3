"""Commands that join several stages."""
