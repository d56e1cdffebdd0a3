"""Packs a converted model as a bundle: canary images, model card, archive."""
