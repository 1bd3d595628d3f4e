"""The transducer: its loss, fused with the joint network, and greedy search over a batch.

Graves, "Sequence Transduction with Recurrent Neural Networks", 2012: encoder frames t, labels u, and at every cell
(t, u) of the lattice a distribution over the vocabulary, of which blank moves to (t+1, u) and the next label to
(t, u+1). The loss is minus the log of the sum over all paths from (0, 0) that end with a blank at (T-1, U).

The joint network here is h = tanh(enc + pred), logits = h W' + b. A plain implementation keeps several tensors of
(B, T, U+1, V) for the backward pass; this one visits the valid cells in blocks, keeps two numbers a cell (log
probability of blank and of the next label) and its log normaliser, and computes the logits again in the backward pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Cells whose logits are alive at one time: on a CPU a block should stay in the cache, on a GPU it should fill the card.
CELLS = {"cpu": 2048, "cuda": 65536}
# Cells that paths visit less often than this add nothing that float32 would hold to sums over frames and labels, where
# others come to 1. Computed all the same they give denormal numbers, with which a product takes ten times as long.
NEGLIGIBLE = 1e-10


def transducer_loss(
    enc: Tensor,
    pred: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    enc_lens: Tensor,
    target_lens: Tensor,
    own: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Exact transducer loss of every utterance, with blank = 0.

    Args:
        enc: encoder output, projected to the joint space (B, T, J).
        pred: prediction network output for <start> and each label, projected to the joint space (B, U+1, J).
        weight, bias: output layer of the joint network (V, J) and (V,), or a bias for each utterance (B, V).
        targets: labels (B, U), padded with anything; 1 <= label < V within the length.
        enc_lens, target_lens: valid frames (B,), at least 1, and labels (B,), at least 0.
        own: weight (B, P, J) and bias (B, P) of tokens V to V+P-1, which each utterance has by itself; a bias of minus
            infinity: it has not.

    Returns:
        Minus log likelihood in nats, (B,), float32.

    Raises:
        ValueError: a length of no frames, a length beyond the tensor, or a blank among the labels.
    """
    lengths, labels = enc_lens.tolist(), target_lens.tolist()
    if min(lengths) < 1 or max(lengths) > enc.shape[1]:
        raise ValueError(f"encoder lengths must be between 1 and {enc.shape[1]}, got {lengths}")
    if min(labels) < 0 or max(labels) > targets.shape[1] or targets.shape[1] + 1 != pred.shape[1]:
        raise ValueError(f"label lengths {labels} do not fit targets {tuple(targets.shape)}, pred {tuple(pred.shape)}")
    within = torch.arange(targets.shape[1], device=targets.device) < target_lens.to(targets.device)[:, None]
    if own is None:
        own = weight.new_empty(len(enc), 0, weight.shape[1]), weight.new_empty(len(enc), 0)
    vocab_size = weight.shape[0] + own[0].shape[1]
    if bool((within & ((targets < 1) | (targets >= vocab_size))).any()):
        raise ValueError(f"labels must be between 1 and {vocab_size - 1}: 0 is blank")
    with torch.autocast(enc.device.type, enabled=False):
        tensors = (x.float() for x in (enc, pred, weight, bias, *own))
        return _FusedLoss.apply(*tensors, targets.where(within, 1), lengths, labels)


def _blocks(lengths: list[int], labels: list[int], cells: int) -> Iterator[tuple[int, slice, int]]:
    """Rectangles of valid cells: utterance, frames, and number of label positions (U_b + 1)."""
    for b, (frames, label_count) in enumerate(zip(lengths, labels, strict=True)):
        positions = label_count + 1
        step = max(1, cells // positions)
        for start in range(0, frames, step):
            yield b, slice(start, min(start + step, frames)), positions


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, enc, pred, weight, bias, own_weight, own_bias, targets, lengths, labels):
        (batch, frames, _), positions = enc.shape, pred.shape[1]
        blank = enc.new_zeros(batch, frames, positions)
        label = enc.new_zeros(batch, frames, positions)  # of the next label; unused at the last position
        normaliser = enc.new_zeros(batch, frames, positions)
        padded = torch.nn.functional.pad(targets, (0, 1), value=1)
        cells = CELLS[enc.device.type]
        for b, t, u in _blocks(lengths, labels, cells):
            hidden = (enc[b, t, None] + pred[b, :u]).tanh_()
            logits = _logits(hidden, weight, _at(bias, b), own_weight[b], own_bias[b])
            log_z = logits.logsumexp(-1)
            normaliser[b, t, :u] = log_z
            blank[b, t, :u] = logits[..., 0] - log_z
            next_label = padded[b, :u].expand(log_z.shape)[..., None]
            label[b, t, :u] = logits.gather(-1, next_label)[..., 0] - log_z
        loss, blank_occupancy, label_occupancy = _lattice(blank, label, lengths, labels)
        negligible = blank_occupancy + label_occupancy < NEGLIGIBLE
        blank_occupancy[negligible] = label_occupancy[negligible] = 0.0
        ctx.save_for_backward(
            enc, pred, weight, bias, own_weight, own_bias, padded, normaliser, blank_occupancy, label_occupancy
        )
        ctx.lengths, ctx.labels = lengths, labels
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        with torch.autocast(grad_loss.device.type, enabled=False):
            return (*_backward(ctx, grad_loss), None, None, None)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, own_weight: Tensor, own_bias: Tensor) -> Tensor:
    """(t, u, J) to (t, u, V + P); those of the shared tokens are computed as if there were no others."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if not len(own_bias):
        return logits
    return torch.cat([logits, torch.nn.functional.linear(hidden, own_weight, own_bias)], dim=-1)


def _at(bias: Tensor, b: int) -> Tensor:
    """Of utterance b (V,), of a bias that is one for all (V,) or each has (B, V)."""
    return bias if bias.dim() == 1 else bias[b]


def _backward(ctx, grad_loss: Tensor) -> tuple[Tensor, ...]:
    enc, pred, weight, bias, own_weight, own_bias, padded, normaliser, *occupancies = ctx.saved_tensors
    blank_occupancy, label_occupancy = occupancies
    grad_enc, grad_pred = torch.zeros_like(enc), torch.zeros_like(pred)
    own_trains = bool(own_bias.shape[1]) and (ctx.needs_input_grad[4] or ctx.needs_input_grad[5])
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    grad_own_weight, grad_own_bias = torch.zeros_like(own_weight), torch.zeros_like(own_bias)
    shared = len(weight)
    # d loss / d logits = occupancy * softmax - (occupancy of blank at blank, of label at the label):
    # the first term is exp(logits - shift), so one pass over the logits makes it.
    shift = normaliser - (blank_occupancy + label_occupancy).log()
    cells = CELLS[enc.device.type]
    for b, t, u in _blocks(ctx.lengths, ctx.labels, cells):
        hidden = (enc[b, t, None] + pred[b, :u]).tanh_()
        grad = _logits(hidden, weight, _at(bias, b), own_weight[b], own_bias[b])
        grad.sub_(shift[b, t, :u, None]).exp_()
        grad[..., 0] -= blank_occupancy[b, t, :u]
        next_label = padded[b, :u].expand(grad.shape[:2])[..., None]
        grad.scatter_add_(-1, next_label, -label_occupancy[b, t, :u, None])
        scaled = hidden * grad_loss[b]
        if ctx.needs_input_grad[2]:
            grad_weight.addmm_(grad[..., :shared].flatten(0, 1).t(), scaled.flatten(0, 1))
        if ctx.needs_input_grad[3]:
            _at(grad_bias, b).add_(grad[..., :shared].sum((0, 1)) * grad_loss[b])
        if own_trains:
            grad_own_weight[b].addmm_(grad[..., shared:].flatten(0, 1).t(), scaled.flatten(0, 1))
            grad_own_bias[b].add_(grad[..., shared:].sum((0, 1)) * grad_loss[b])
        grad_hidden = grad[..., :shared] @ weight + grad[..., shared:] @ own_weight[b]
        grad_hidden.mul_(grad_loss[b] - scaled * hidden)  # tanh' = 1 - h^2
        grad_enc[b, t] += grad_hidden.sum(1)
        grad_pred[b, :u] += grad_hidden.sum(0)
    return grad_enc, grad_pred, grad_weight, grad_bias, grad_own_weight, grad_own_bias


def _lattice(blank: Tensor, label: Tensor, lengths: list[int], labels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over paths by the forward-backward algorithm.

    Args:
        blank, label: log probability of blank and of the next label at every cell, (B, T, U+1) each.
        lengths, labels: valid frames and labels of each utterance.

    Returns:
        Loss (B,), and the expected number of times a path emits blank, and the next label, at a cell, (B, T, U+1) each.
    """
    batch, frames, positions = blank.shape
    device = blank.device
    last_t = torch.tensor(lengths, device=device)[:, None] - 1
    last_u = torch.tensor(labels, device=device)[:, None]
    t, u = torch.arange(frames, device=device), torch.arange(positions, device=device)
    rows = torch.arange(batch, device=device)

    # Backward variables are the forward ones of the lattice turned by 180 degrees about each utterance's own end:
    # one recursion serves both, stacked along the batch. Cells beyond the end turn onto cell (0, 0), whatever is there
    # flows away from the valid cells.
    turned_t = (last_t - t).clamp(min=0)
    turned_u = (last_u - u).clamp(min=0)
    turn = (rows[:, None, None], turned_t[:, :, None], turned_u[:, None, :])
    blank64, label64 = blank.double(), label.double()
    turned_blank = blank64[turn]
    turned_label = label64[rows[:, None, None], turned_t[:, :, None], (last_u - 1 - u).clamp(min=0)[:, None, :]]
    # Going back, a move by blank weighs what blank weighs where it arrives, so the row moves up by one frame.
    incoming = torch.cat([turned_blank[:, 1:], turned_blank[:, :1]], dim=1)
    both = _forward_variables(torch.cat([blank64, incoming]), torch.cat([label64, turned_label]))
    alpha, beta = both[:batch], both[batch:] + turned_blank[:, :1, :1]
    beta = beta[turn]  # from the cell to the end, its own emission included

    log_likelihood = beta[:, 0, 0]
    valid = (t <= last_t)[:, :, None] & (u <= last_u)[:, None, :]
    after_blank = torch.cat([beta[:, 1:], torch.full_like(beta[:, :1], -torch.inf)], dim=1)
    after_blank = after_blank.masked_fill(t[:, None] >= last_t[:, :, None], -torch.inf)
    after_blank[rows, last_t[:, 0], last_u[:, 0]] = 0.0
    after_label = torch.cat([beta[:, :, 1:], torch.full_like(beta[:, :, :1], -torch.inf)], dim=2)
    after_label = after_label.masked_fill((u >= last_u)[:, None, :], -torch.inf)
    before = alpha - log_likelihood[:, None, None]
    blank_occupancy = (before + blank64 + after_blank).exp().where(valid, 0.0)
    label_occupancy = (before + label64 + after_label).exp().where(valid, 0.0)
    return -log_likelihood.float(), blank_occupancy.float(), label_occupancy.float()


def _forward_variables(blank: Tensor, label: Tensor) -> Tensor:
    """alpha[t, u] = log(exp(alpha[t-1, u] + blank[t-1, u]) + exp(alpha[t, u-1] + label[t, u-1])), (N, T, U+1) float64.

    Within a frame the recursion over u is a cumulative sum once the labels' own sums are taken out, which float64
    bears: only the loop over frames is left.
    """
    along = torch.nn.functional.pad(label[..., :-1].cumsum(-1), (1, 0))
    rows = [along[:, 0]]
    for t in range(1, blank.shape[1]):
        rows.append(along[:, t] + (rows[-1] + blank[:, t - 1] - along[:, t]).logcumsumexp(-1))
    return torch.stack(rows, dim=1)
