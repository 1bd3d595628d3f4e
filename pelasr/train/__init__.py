"""Training: one loop for backbones and adapters."""
