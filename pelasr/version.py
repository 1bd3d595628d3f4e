"""The version of pelasr, which stands here alone."""

__version__ = "0.1.0"
