"""The convolutions that pretrained encoders begin with."""

import torch
from adapted_encoders import heard, make_ctc


def test_double_precision_with_padding():
    """Group norm is over each utterance, in the precision of what comes in, float32 at least."""
    model = make_ctc("hubert")
    feats, lens = heard("hubert")
    with torch.no_grad():
        single, _ = model.encode(feats, lens, None)
        double, _ = model.double().encode(feats.double(), lens, None)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)
