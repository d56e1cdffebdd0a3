"""A machine made a device: what is copied to it, over SSH or on a prepared card."""
