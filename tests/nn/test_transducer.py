"""The loss against sums over all paths."""

from itertools import combinations_with_replacement

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pelasr.nn import transducer
from pelasr.nn.transducer import transducer_loss

J, V = 4, 5
NAMES = ("enc", "pred", "weight", "bias")


def problem(frames, labels, seed=0, scale=1.0, joint=J, vocabulary=V):
    """Arguments of `transducer_loss`, in float64."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    batch, longest = len(frames), max(labels)
    targets = torch.randint(1, vocabulary, (batch, longest), generator=draws)
    return (
        normal(batch, max(frames), joint),
        normal(batch, longest + 1, joint),
        normal(vocabulary, joint) * scale,
        normal(vocabulary) * scale,
        targets,
        torch.tensor(frames),
        torch.tensor(labels),
    )


def log_probs_of(arguments, b):
    enc, pred, weight, bias, _, frames, labels = arguments
    hidden = (enc[b, : frames[b], None] + pred[b, : labels[b] + 1]).tanh()
    return (hidden @ weight.T + bias).log_softmax(-1)


def over_all_paths(log_probs, labels):
    """Loss of one utterance, (T, U+1, V): every path is a choice of the frame at which each label is emitted."""
    scores = []
    for when in combinations_with_replacement(range(len(log_probs)), len(labels)):
        score, u = 0.0, 0
        for t in range(len(log_probs)):
            for _ in range(when.count(t)):
                score, u = score + log_probs[t, u, labels[u]], u + 1
            score = score + log_probs[t, u, 0]
        scores.append(score)
    return -torch.stack(scores).logsumexp(0)


def by_recursion(log_probs, labels):
    """Loss of one utterance by Graves's equation 16, cell by cell."""
    alpha = {(0, 0): log_probs.new_zeros(())}
    for t in range(len(log_probs)):
        for u in range(len(labels) + 1):
            into = [alpha[t - 1, u] + log_probs[t - 1, u, 0]] if t else []
            into += [alpha[t, u - 1] + log_probs[t, u - 1, labels[u - 1]]] if u else []
            if into:
                alpha[t, u] = torch.stack(into).logsumexp(0)
    t, u = len(log_probs) - 1, len(labels)
    return -(alpha[t, u] + log_probs[t, u, 0])


def reference(arguments, of_one):
    targets, labels = arguments[4], arguments[6]
    losses = [of_one(log_probs_of(arguments, b), targets[b, : labels[b]].tolist()) for b in range(len(targets))]
    return torch.stack(losses)


def gradients(arguments, loss, factors=None):
    """Losses, and gradients of their sum (weighed by `factors`) for enc, pred, weight and bias."""
    leaves = [tensor.clone().requires_grad_() for tensor in arguments[:4]]
    losses = loss(*leaves, *arguments[4:])
    (losses if factors is None else losses * factors.to(losses.dtype)).sum().backward()
    return losses.detach(), [leaf.grad for leaf in leaves]


def single(arguments):
    return tuple(x.float() if x.is_floating_point() else x for x in arguments)


def assert_same(arguments, of_one, factors=None, rtol=1e-5, atol=1e-5):
    losses, grads = gradients(single(arguments), transducer_loss, factors)
    wanted, wanted_grads = gradients(arguments, lambda *a: reference(a, of_one), factors)
    torch.testing.assert_close(losses.double(), wanted, rtol=rtol, atol=atol)
    for name, grad, want in zip(NAMES, grads, wanted_grads, strict=True):
        torch.testing.assert_close(
            grad.double(), want, rtol=10 * rtol, atol=atol, msg=lambda m, name=name: f"{name} {m}"
        )


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("labels", [0, 1, 2, 3])
def test_loss_and_gradients_sum_over_all_paths(frames, labels):
    assert_same(problem([frames], [labels], seed=10 * frames + labels), over_all_paths)


def test_number_of_paths():
    """With every symbol as likely as another, a path weighs V ** -(T + U), so the loss counts the paths."""
    enc, pred, weight, bias, targets, frames, labels = problem([4], [3])
    loss = transducer_loss(enc, pred, weight * 0, bias * 0, targets, frames, labels)
    assert loss.item() == pytest.approx(7 * torch.tensor(V).log().item() - torch.tensor(20.0).log().item(), rel=1e-6)


def test_repeated_labels():
    arguments = problem([4], [3])
    arguments[4][:] = torch.tensor([[2, 2, 2]])
    assert_same(arguments, over_all_paths)


def test_batch_of_different_lengths_and_factors():
    arguments = problem([4, 1, 3, 2, 4], [0, 3, 2, 1, 3])
    assert_same(arguments, over_all_paths)
    assert_same(arguments, over_all_paths, factors=torch.tensor([0.5, -2.0, 0.0, 3.0, 1.0]))


def test_finite_differences():
    arguments = problem([3, 2], [2, 1], scale=0.5)
    _, grads = gradients(single(arguments), transducer_loss)
    step = 1e-2
    for which, grad in enumerate(grads):
        for index in range(grad.numel()):
            sides = []
            for sign in (1, -1):
                moved = list(arguments)
                moved[which] = moved[which].clone()
                moved[which].view(-1)[index] += sign * step
                sides.append(transducer_loss(*moved).double().sum())
            slope = (sides[0] - sides[1]).item() / (2 * step)
            assert slope == pytest.approx(grad.view(-1)[index].item(), abs=5e-4)


def test_long_utterances():
    assert_same(problem([60, 37], [21, 30], seed=3), by_recursion)


def test_sharp_distributions():
    """Log probabilities of -500 and paths that never occur leave no infinity and no NaN."""
    arguments = problem([9, 6], [4, 3], seed=4, scale=100.0)
    assert reference(arguments, by_recursion).min() > 100
    assert_same(arguments, by_recursion, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("garbage", [1e4, torch.inf, torch.nan])
def test_padding_never_matters(garbage):
    arguments = single(problem([2, 5], [3, 1], seed=6))
    losses, grads = gradients(arguments, transducer_loss)
    enc, pred, weight, bias, targets, frames, labels = (tensor.clone() for tensor in arguments)
    enc[0, 2:], pred[1, 2:], targets[1, 1:] = garbage, garbage, -1
    enc = torch.nn.functional.pad(enc, (0, 0, 0, 2), value=garbage)
    pred = torch.nn.functional.pad(pred, (0, 0, 0, 3), value=garbage)
    targets = torch.nn.functional.pad(targets, (0, 3), value=V + 7)
    padded = (enc, pred, weight, bias, targets, frames, labels)
    padded_losses, padded_grads = gradients(padded, transducer_loss)
    assert torch.equal(padded_losses, losses)
    for b in range(2):
        assert torch.equal(padded_grads[0][b, : frames[b]], grads[0][b, : frames[b]])
        assert torch.equal(padded_grads[1][b, : labels[b] + 1], grads[1][b, : labels[b] + 1])
        assert not padded_grads[0][b, frames[b] :].any() and not padded_grads[1][b, labels[b] + 1 :].any()
    assert torch.equal(padded_grads[2], grads[2]) and torch.equal(padded_grads[3], grads[3])


def test_a_bias_for_each_utterance():
    """As if each were alone with its own; losses and gradients. The same one for all is bit-equal to one bias."""
    enc, pred, weight, bias, *rest = single(problem([3, 4], [2, 1], seed=3))
    biases = torch.stack([bias, bias.flip(0)])
    losses, grads = gradients((enc, pred, weight, biases, *rest), transducer_loss)
    for b in range(2):
        one = slice(b, b + 1)
        alone = (enc[one], pred[one], weight, biases[b], *(tensor[one] for tensor in rest))
        loss, wanted = gradients(alone, transducer_loss)
        assert torch.equal(losses[one], loss)
        torch.testing.assert_close(grads[3][b], wanted[3])
        torch.testing.assert_close(grads[0][one], wanted[0])
    same, shared = gradients((enc, pred, weight, torch.stack([bias, bias]), *rest), transducer_loss)
    plain, wanted = gradients((enc, pred, weight, bias, *rest), transducer_loss)
    assert torch.equal(same, plain) and torch.equal(shared[2], wanted[2])
    torch.testing.assert_close(shared[3].sum(0), wanted[3])


def test_a_nan_stays_in_its_utterance():
    """A valid frame that is not a number spoils the loss of its own utterance alone."""
    enc, *rest = single(problem([3, 3], [2, 2]))
    clean = transducer_loss(enc, *rest)
    enc[0, 1] = torch.nan
    spoilt = transducer_loss(enc, *rest)
    assert spoilt[0].isnan() and spoilt[1] == clean[1]


@pytest.mark.parametrize("cells", [1, 3, 8])
def test_block_size_does_not_matter(cells, monkeypatch):
    arguments = single(problem([7, 4, 6], [3, 5, 0], seed=7))
    losses, grads = gradients(arguments, transducer_loss)
    monkeypatch.setattr(transducer, "CELLS", {"cpu": cells})
    small_losses, small_grads = gradients(arguments, transducer_loss)
    torch.testing.assert_close(small_losses, losses)
    for small, grad in zip(small_grads, grads, strict=True):
        torch.testing.assert_close(small, grad, rtol=1e-4, atol=1e-6)


def test_frozen_output_layer():
    arguments = single(problem([4, 3], [2, 3], seed=8))
    _, wanted = gradients(arguments, transducer_loss)
    enc, pred = (tensor.clone().requires_grad_() for tensor in arguments[:2])
    transducer_loss(enc, pred, *arguments[2:]).sum().backward()
    assert torch.equal(enc.grad, wanted[0]) and torch.equal(pred.grad, wanted[1])
    assert arguments[2].grad is None and arguments[3].grad is None


class Denormal(TorchDispatchMode):
    """Counts the denormal numbers that matrix products are given."""

    def __init__(self):
        super().__init__()
        self.products = self.found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.products += 1
            values = torch.cat([x.flatten().abs() for x in args if isinstance(x, torch.Tensor)])
            self.found += int(((values > 0) & (values < torch.finfo(torch.float32).tiny)).sum())
        return function(*args, **(kwargs or {}))


def test_products_have_no_denormal_numbers():
    """They would take many times as long; cells that paths hardly ever visit would give them."""
    arguments = problem([60, 57], [21, 30], seed=3, scale=8.0)
    with Denormal() as seen:
        losses, _ = gradients(single(arguments), transducer_loss)
    assert seen.products > 4 and seen.found == 0 and losses.min() > 100
    assert_same(arguments, by_recursion, rtol=2e-5, atol=2e-4)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)), 0)
        return result


def test_memory_is_bounded(monkeypatch):
    """No tensor of the lattice times the vocabulary, or times the joint space, is ever made."""
    joint, vocabulary, cells = 16, 40, 64
    arguments = single(problem([30, 28], [15, 12], joint=joint, vocabulary=vocabulary))
    lattice = 2 * 30 * 16
    monkeypatch.setattr(transducer, "CELLS", {"cpu": cells})
    with Largest() as largest:
        gradients(arguments, transducer_loss)
    assert cells * vocabulary // 2 < largest.numel <= max(cells * vocabulary, 2 * lattice)
    assert 7 * largest.numel < lattice * min(vocabulary, joint * 2)
    with Largest() as plain:  # the measure itself sees what a plain implementation makes
        (arguments[0][:, :, None] + arguments[1][:, None]).tanh() @ arguments[2].T
    assert plain.numel == lattice * vocabulary


def test_autocast_is_left_outside():
    """Under autocast the lattice, forward and backward, is still that of float32."""
    arguments = single(problem([4, 3], [2, 3], seed=9))
    wanted, wanted_grads = gradients(arguments, transducer_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, grads = gradients(arguments, transducer_loss)
    assert losses.dtype == torch.float32 and torch.equal(losses, wanted)
    assert all(map(torch.equal, grads, wanted_grads))


def test_bfloat16_inputs_are_computed_in_float32():
    arguments = single(problem([4, 3], [2, 3], seed=9))
    half = [tensor.bfloat16() for tensor in arguments[:4]]
    losses, grads = gradients((*half, *arguments[4:]), transducer_loss)
    assert torch.equal(losses, transducer_loss(*(tensor.float() for tensor in half), *arguments[4:]))
    assert {grad.dtype for grad in grads} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": [3, 0]}, "between 1 and 3"),
        ({"frames": [4, 2]}, "between 1 and 3"),
        ({"labels": [3, 1]}, r"label lengths \[3, 1\]"),
        ({"labels": [-1, 1]}, r"label lengths \[-1, 1\]"),
        ({"targets": [[1, 0], [2, 2]]}, "0 is blank"),
        ({"targets": [[1, V], [2, 2]]}, f"between 1 and {V - 1}"),
        ({"targets": [[1, -1], [2, 2]]}, "0 is blank"),
        ({"targets": [[1, 2, 1], [2, 2, 1]]}, "do not fit"),
    ],
)
def test_bad_lengths_and_labels(change, message):
    *tensors, targets, frames, labels = problem([3, 2], [2, 1])
    given = {"targets": targets.tolist(), "frames": frames.tolist(), "labels": labels.tolist()} | change
    with pytest.raises(ValueError, match=message):
        transducer_loss(*tensors, *(torch.tensor(given[name]) for name in ("targets", "frames", "labels")))
