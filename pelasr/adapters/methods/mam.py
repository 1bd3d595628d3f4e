"""Mix-and-match adapters (He et al. 2022, section 4.6): a short prefix in attention, and beside feed-forward sub-layers
a scaled parallel adapter, which has most of the parameters."""

from pelasr.adapters import Adapter, find_method


class Mam(Adapter):
    """See `Prefix` and `Parallel`, whose options it has. Of these the parallel one begins as the identity."""

    because = find_method("prefix").because
    together = find_method("prefix").together
    parts = {**find_method("prefix").parts, "ffn": find_method("parallel")}
