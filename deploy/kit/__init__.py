"""What goes onto a device: `setup.py`, which runs there, the unit, and (in `gather`) the wheels around them."""
