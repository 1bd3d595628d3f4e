"""Fine-tuning of the whole model: every language has a copy of encoder and decoder of its own."""

from pelasr.adapters import Adapter


class Full(Adapter):
    sites = ("encoder", "decoder")
    copies = True
