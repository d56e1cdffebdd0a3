"""Trains the head and fine-tunes the backbone. Also provides batches, augmentation and checkpoints."""
