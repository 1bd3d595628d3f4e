"""pelasr: multilingual speech recognition and translation with adapters."""

__version__ = "0.1.0"
