"""No adapters: a language has its own parts alone, such as an output layer on a frozen encoder."""

from pelasr.adapters import Adapter


class Output(Adapter):
    sites = ()
