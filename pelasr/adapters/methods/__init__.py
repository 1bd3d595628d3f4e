"""Methods, one a file: see `pelasr.adapters.base.Adapter`."""
