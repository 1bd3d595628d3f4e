"""pelasr: multilingual speech recognition with adapters."""

__version__ = "0.1.0"
