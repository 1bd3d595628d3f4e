"""Fine-tuning of the decoder with its embeddings and output layer: a copy of its own for every language."""

from pelasr.adapter import Adapter


class Decoder(Adapter):
    sites = ("decoder",)
    copies = True
