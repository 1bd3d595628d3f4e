"""Greedy search of a transducer over a batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from pelasr.nn.active_rows import only
from pelasr.search.hypothesis import Hypothesis

AHEAD = 4  # frames that a step of the search looks at


@dataclass
class _Path:
    """How far the search has come in an utterance of so many frames; `emitted`: labels at the current frame."""

    frames: int
    frame: int = 0
    emitted: int = 0
    score: float = 0.0
    tokens: list[int] = field(default_factory=list)

    def advance(self, symbols: list[int], log_probs: list[float], blanks: list[float], max_symbols: int) -> bool:
        """Go over blanks to the next label, if there is one in the frames ahead, for each of which it is given the
        likeliest symbol, its log probability and that of blank. Returns whether there was one."""
        ahead = zip(symbols, log_probs, blanks, strict=True)
        for symbol, log_prob, blank in islice(ahead, self.frames - self.frame):
            if symbol and self.emitted < max_symbols:
                self.tokens.append(symbol)
                self.score += log_prob
                self.emitted += 1
                return True
            self.score += blank
            self.frame += 1
            self.emitted = 0
        return False


@torch.no_grad()
def greedy_search(
    enc: Tensor,
    enc_lens: Tensor,
    predict: Callable[[Tensor, tuple[Tensor, ...] | None], tuple[Tensor, tuple[Tensor, ...]]],
    output_layer: Callable[[Tensor], Tensor],
    max_symbols: int = 5,
) -> list[Hypothesis]:
    """Follow the likeliest symbol at every frame, for all utterances of a batch at once.

    Every utterance is at a frame of its own. As the prediction network does not change until there is a label, a step
    looks at `AHEAD` frames and takes an utterance over blanks to the next label among them. So there are about as many
    steps as labels, and the result is that of one by one.

    Args:
        enc: encoder output in the joint space (B, T, J); enc_lens: valid frames (B,).
        predict: labels (N,) and the state before them (tensors of (., N, .)) to prediction output in the joint space
            (N, J) and the state after.
        output_layer: (N, AHEAD, J) to logits (N, AHEAD, V), blank = 0.
            Both are called for some of the rows, which `rows.remaining()` tells.
        max_symbols: labels at most per frame; then the blank is forced.
    """

    def indices(values: list) -> Tensor:
        return torch.tensor(values, device=enc.device)

    paths = [_Path(frames) for frames in enc_lens.tolist()]
    cells = enc.flatten(0, 1)
    pred, state = predict(indices([0] * len(paths)), None)
    live = [b for b, path in enumerate(paths) if path.frames]
    while live:
        ahead = [b * enc.shape[1] + min(paths[b].frame + n, paths[b].frames - 1) for b in live for n in range(AHEAD)]
        hidden = cells.index_select(0, indices(ahead)).view(len(live), AHEAD, -1)
        rows = indices(live)
        with only(rows):
            hidden = (hidden + pred.index_select(0, rows)[:, None]).tanh()
            log_probs = output_layer(hidden).float().log_softmax(-1)
        log_prob, symbol = log_probs.max(-1)
        found = zip(symbol.tolist(), log_prob.tolist(), log_probs[..., 0].tolist(), strict=True)
        labelled = [b for b, row in zip(live, found, strict=True) if paths[b].advance(*row, max_symbols)]
        if labelled:
            labels, rows = indices([paths[b].tokens[-1] for b in labelled]), indices(labelled)
            if len(labelled) == len(paths):  # a single utterance, for one: nothing to pick and to put back
                pred, state = predict(labels, state)
            else:
                with only(rows):
                    new_pred, after = predict(labels, tuple(part.index_select(1, rows) for part in state))
                pred.index_copy_(0, rows, new_pred)
                for part, new in zip(state, after, strict=True):
                    part.index_copy_(1, rows, new)
        live = [b for b in live if paths[b].frame < paths[b].frames]
    return [Hypothesis(path.tokens, path.score) for path in paths]
