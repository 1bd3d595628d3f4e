"""Fine-tuning of the decoder with its embeddings and output layer: a copy of its own for every language."""

from pelasr.adapters import Adapter


class Decoder(Adapter):
    sites = ("decoder",)
    copies = True
