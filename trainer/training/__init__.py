"""The training itself: batches, augmentation, head, fine-tuning, checkpoints."""
