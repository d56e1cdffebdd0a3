"""Which captured frames are worth a label, and the labels people gave."""
