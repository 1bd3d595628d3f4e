"""Ladder side-tuning: its sums by hand, its size, and that nothing of the backbone is in the graph."""

import pytest
import torch
from adapted_encoders import LANGUAGES, check_rows, heard, make_bank, make_ctc
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pelasr.adapters.base import Shared
from pelasr.adapters.methods.ladder import Rung, Top
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError


def drawn(bank):
    for name, parameter in bank.named_parameters():
        nn.init.normal_(parameter, std=0.05 if name.endswith("gate") else 0.5)
    return bank


def graph_of(tensor):
    """All nodes, and the parameters that gradients end in."""
    found, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [other for other, _ in node.next_functions]
    return found, {id(node.variable) for node in found if hasattr(node, "variable")}


def encode(model, batch, bank=None):
    if bank is None:
        return model.encode(batch.feats, batch.lens, batch.language_ids)[0]
    with bank.route(batch.languages):
        return model.encode(batch.feats, batch.lens, batch.language_ids)[0]


def test_fresh_is_the_identity(make_rnnt, make_batch):
    for encoder in ("lstm", "conformer"):
        model, batch = make_rnnt(encoder), make_batch(LANGUAGES)
        bank = make_bank(model, "ladder", reduction=2)
        assert torch.equal(encode(model, batch, bank), encode(model, batch))


def test_formula():
    """Two layers and the top, of one frame after another, with fewer frames in the second."""
    torch.manual_seed(0)
    rungs, top = [Rung(6, 5, 0, 2), Rung(6, 9, 1, 2)], Top(6, 2)
    for part in (*rungs, top):
        drawn(part.double())
    x, h = torch.randn(1, 5, 5).double(), [torch.randn(1, 5, 6).double(), torch.randn(1, 3, 6).double()]
    inside, shared = [torch.tensor([[True] * 4 + [False]]), torch.tensor([[True, True, False]])], Shared()
    assert rungs[0](x, h[0], inside[0], shared) is h[0] and rungs[1](x, h[1], inside[1], shared) is h[1]
    found = top(x, h[1], shared)

    def block(rung, new, old):
        m = 1 / (1 + torch.exp(-rung.gate / 0.1))
        z = m * (rung.down.weight @ new + rung.down.bias) + (1 - m) * old
        n = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt() * rung.norm.weight + rung.norm.bias
        return z + rung.outer.weight @ (rung.inner.weight @ n + rung.inner.bias).clamp(min=0) + rung.outer.bias

    first = rungs[0].first
    s = [block(rungs[0], h[0][0, t], first.weight @ x[0, t] + first.bias) for t in range(5)]
    for t, old in enumerate([(s[0] + s[1]) / 2, (s[2] + s[3]) / 2]):
        wanted = h[1][0, t] + top.up.weight @ block(rungs[1], h[1][0, t], old) + top.up.bias
        torch.testing.assert_close(found[0, t], wanted)


def test_an_odd_last_frame_stands_for_itself():
    """What pads it to a pair is not averaged with it."""
    torch.manual_seed(0)
    rungs, shared = [drawn(Rung(6, 6, n, 2)) for n in range(2)], Shared()
    h, inside = torch.randn(1, 4, 6), torch.tensor([[True, True, True, False]])
    rungs[0](h, h, inside, shared)
    rungs[1](h, h[:, :2], torch.ones(1, 2, dtype=torch.bool), shared)
    found = shared.values["s", 1]
    h[:, 3] = 1e3
    rungs[0](h, h, inside, shared)
    rungs[1](h, h[:, :2], torch.ones(1, 2, dtype=torch.bool), shared)
    assert torch.equal(shared.values["s", 1], found)


@pytest.mark.parametrize(
    ("family", "encoder"),
    [("rnnt", "lstm"), ("rnnt", "conformer"), ("st", "transformer"), ("st", "e_branchformer")],
)
def test_rows_of_a_batch(family, encoder, make_model, make_batch):
    model, batch = make_model(family, {"encoder": encoder}), make_batch(LANGUAGES, frames=[61, 40, 33, 52])
    bank = drawn(make_bank(model, "ladder", reduction=2))
    check_rows(model, bank, LANGUAGES, batch.feats, batch.lens, batch.language_ids)
    with bank.route(LANGUAGES):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    bank.check_gradients(LANGUAGES)
    assert all(parameter.grad.any() for parameter in bank.parameters())


@pytest.mark.parametrize("kind", ["hubert", "wavlm_stable", "bert_relative"])
def test_rows_of_a_pretrained_encoder(kind):
    model = make_ctc(kind)
    check_rows(model, drawn(make_bank(model, "ladder", reduction=4)), LANGUAGES, *heard(kind))


def kept_for_backward(call):
    """Numbers that are kept, of distinct tensors, without parameters."""
    sizes = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    return result, sum(sizes.values())


@pytest.mark.parametrize("languages", [["hi", "hi"], ["hi", "ur"]])
def test_the_backbone_is_not_in_the_graph(languages, make_st, make_batch):
    """The graph ends in adapters alone, and is the same for layers that compute more, as is what is kept for the
    backward pass. With adapters in the layers it is not."""
    found = {}
    for method, options in (("ladder", {"reduction": 2}), ("houlsby", {"sites": "layer", "bottleneck": 2})):
        for macaron, units in ((False, 8), (True, 512)):
            conf = {"output_size": 6, "attention_heads": 2, "linear_units": units, "macaron_style": macaron}
            model, batch = make_st("conformer", encoder_conf={**conf, "num_blocks": 2}), make_batch(languages)
            bank = drawn(make_bank(model, method, **options))
            enc, kept = kept_for_backward(lambda m=model, k=batch, bank=bank: encode(m, k, bank))
            nodes, ends = graph_of(enc)
            assert ends <= {id(parameter) for parameter in bank.parameters()} and ends
            found[method, units] = len(nodes), kept
    assert found["ladder", 8] == found["ladder", 512]
    assert found["houlsby", 512][0] > found["houlsby", 8][0] and found["houlsby", 512][1] > 10 * found["houlsby", 8][1]


def test_it_is_cut_where_the_backbone_trains(make_st, make_batch):
    """Rungs take no gradient to the layers, even if these are not frozen."""
    model, batch = make_st(), make_batch(["hi", "hi"])
    bank = drawn(make_bank(model, "ladder", reduction=2))
    model.requires_grad_(True)
    enc = encode(model, batch, bank)
    plain = encode(model, batch)
    weight = model.get_parameter("encoder.stack.encoder.encoders.0.norm1.weight")
    wanted, found = (
        torch.autograd.grad(part.square().sum(), weight)[0] for part in (plain, enc - enc.detach() + plain.detach())
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("languages", [["hi", "hi"], ["hi", "ur"]])
def test_layers_that_are_computed_again(languages, make_st, make_batch):
    """Activation checkpointing: the same gradients."""
    model, batch = make_st(), make_batch(languages)
    bank = drawn(make_bank(model, "ladder", reduction=2))
    found = []
    for layers in range(2):
        for layer in model.get_submodule("encoder.stack.encoder.encoders").children() if layers else ():
            forward = layer.forward
            layer.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
        bank.zero_grad()
        with bank.route(languages):
            model.encode(batch.feats, batch.lens)[0].square().sum().backward()
        found.append([parameter.grad.clone() for parameter in bank.parameters() if parameter.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_size_of_hubert():
    with torch.device("meta"):
        model = build_backbone("ctc", {"encoder": "hubert", "objective": "none"}, 3, 1)
        size = make_bank(model, "ladder", languages=["hi"]).size("hi")
    d, width = 96, 768
    assert size == 12 * (width * d + 8 * d * d + 8 * d + 1) + (width + 1) * d + (d + 1) * width == 1_927_020


def test_gradients():
    """By finite differences, of two rungs and the top."""
    torch.manual_seed(0)
    parts = nn.ModuleList([Rung(4, 4, 0, 2), Rung(4, 4, 1, 2), Top(4, 2)])
    drawn(parts.double())
    h, inside = torch.randn(3, 1, 4, 4).double(), torch.tensor([[True, True, True, False]])

    def call(*parameters):
        for (path, name), parameter in zip(places, parameters, strict=True):
            setattr(parts.get_submodule(path), name, parameter)
        shared = Shared()
        for n in range(2):
            parts[n](h[n], h[n + 1][:, : 4 - 2 * n], inside[:, : 4 - 2 * n], shared)
        return parts[2](h[0], h[2][:, :2], shared)

    named = dict(parts.named_parameters())
    places = [(path.rpartition(".")[0], path.rpartition(".")[2]) for path in named]
    values = tuple(parameter.detach().clone().requires_grad_() for parameter in named.values())
    for path, name in places:
        delattr(parts.get_submodule(path), name)
    assert torch.autograd.gradcheck(call, values)


def test_what_it_cannot_be(make_rnnt):
    with pytest.raises(PelasrError, match="site encoder.layers.0: .* reduction: 8 is not between 1 and the 6"):
        make_bank(make_rnnt(), "ladder")
