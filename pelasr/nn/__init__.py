"""Networks and losses that backbones are made of."""
