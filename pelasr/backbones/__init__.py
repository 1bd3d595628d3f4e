"""Backbones, a family a file: what they are (`base`), and how they are kept (`store`, `format`)."""
