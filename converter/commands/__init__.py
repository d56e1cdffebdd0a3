"""The converter's commands, one module each."""
