"""float32 to int8, and the steps tried when int8 loses too much accuracy."""
