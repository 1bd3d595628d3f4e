"""Search by CTC alone."""

from torch import Tensor
from torch.nn import functional as F

from pelasr.nn.layers import within
from pelasr.search.hypothesis import Hypothesis

BLANK = 0


def ctc_best_path(logits: Tensor, lens: Tensor) -> list[Hypothesis]:
    """The most probable label of every frame of (B, T, V), repeats merged and blanks left out; its log probability."""
    scores, path = logits.float().log_softmax(-1).max(-1)
    new = path.ne(F.pad(path, (1, 0), value=BLANK)[:, :-1])
    mask = within(lens, path.shape[1])
    kept = new & path.ne(BLANK) & mask
    totals = (scores * mask).sum(1).tolist()
    return [Hypothesis(row[keep].tolist(), total) for row, keep, total in zip(path, kept, totals, strict=True)]
