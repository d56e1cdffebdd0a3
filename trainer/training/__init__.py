"""The stages of a training run and what they need: batches, augmentation, head, fine-tuning and checkpoints."""
