"""Packs a converted model as a bundle, together with canary images and a model card."""
