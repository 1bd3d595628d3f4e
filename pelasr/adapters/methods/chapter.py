"""CHAPTER (Chen, Sung and Lee 2022, arXiv 2212.01282): CNN adapters beside the convolutions over samples, and
bottleneck adapters (Houlsby et al. 2019) on the feed-forward sub-layers of the Transformer above."""

from pelasr.adapters import Adapter, find_method


class Chapter(Adapter):
    """See `Cnn` and `Houlsby`, whose options it has. A fresh adapter is exactly the identity."""

    because = find_method("cnn").because
    parts = {**find_method("cnn").parts, "ffn": find_method("houlsby")}
