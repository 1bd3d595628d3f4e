"""Packs: what one language adds to a backbone, as files."""
