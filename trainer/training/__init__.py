"""Stages of a training: batches, augmentation, head, fine-tuning, checkpoints."""
