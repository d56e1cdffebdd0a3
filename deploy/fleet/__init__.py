"""Access to devices over SSH: the inventory, single devices, and rollouts to many."""
