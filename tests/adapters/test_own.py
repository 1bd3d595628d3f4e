"""Own parts: own tokens and the language vector of a new language, and that the others never see them."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts, install, routed
from pelasr.adapters.routes import Served, Unadapted
from pelasr.nn.transducer import transducer_loss

V = 7  # tokens of conftest's RNN-T
OWN = ["ਕ", "ਖ"]
KINDS = {
    "lstm": {},
    "vector": {"language_vector": "embedding", "language_vector_size": 3},
    "none": {"language_vector": "none"},
    "ctc": {"ctc_weight": 0.3},
    "espnet": {"decoder": "transducer", "decoder_conf": {"hidden_size": 8}},
    "conformer": {"encoder": "conformer"},
}


def add(model, language, tokens=OWN, seed=0):
    """A bank of `hi`, `ur` and a new language, everything trained at random."""
    install(model)
    freeze(model)
    torch.manual_seed(seed)
    bank = Bank("houlsby", {"bottleneck": 3, "sites": "layer" if "layer" in model.sites() else "ffn"}, model)
    for known in ("hi", "ur"):
        bank.add(known)
    bank.add(language, own=OwnParts(model, tokens, vector=True))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    return bank.eval()


def run(model, bank, batch, rows, languages):
    """Logits (B, ., V), losses, and hypotheses of some rows."""
    rows = torch.tensor(rows)
    with bank.route(languages), torch.no_grad():
        enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
        labels = batch.targets[rows], batch.target_lens[rows]
        prefix = None if batch.prefix is None else batch.prefix[rows]
        losses = model.loss(enc, lens, *labels, prefix).total
        return model.logits(enc, lens, *labels, prefix), losses, model.search(enc, lens, prefix)


@pytest.fixture
def batch(make_batch):
    """hi, pa and ur; pa's labels hold both of its own tokens."""
    made = make_batch(["hi", "pa", "ur"], frames=[31, 28, 31])
    made.target_lens[:] = 3
    made.targets[1] = torch.tensor([V, 2, V + 1])
    made.language_ids[1] = 0  # a new language has no slot
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_bit_equal(kind, make_rnnt, batch):
    """The logits of other languages' rows with a new language in the batch are those of the same batch without it."""
    model = make_rnnt(**KINDS[kind])
    bank = add(model, "pa")
    after, losses, found = run(model, bank, batch, [0, 1, 2], ["hi", "pa", "ur"])
    batch.targets[1] = 1
    before, plain, wanted = run(model, bank, batch, [0, 1, 2], ["hi", "hi", "ur"])
    assert after.shape[-1] == V + len(OWN) and before.shape[-1] == V
    for row in (0, 2):
        assert torch.equal(after[row, :, :V], before[row])
        assert bool((after[row, :, V:] == -torch.inf).all())
        assert found[row].tokens == wanted[row].tokens
        torch.testing.assert_close(losses[row], plain[row])
    assert bool(after[1].isfinite().all())


@pytest.mark.parametrize("frames", [31, 43, 67])
def test_a_batch_of_one_language_is_no_exception(frames, make_rnnt, make_batch):
    """Sizes where a product of matrices by row and one of all rows round differently."""
    sizes = {"num_layers": 2, "hidden_size": 320, "output_size": 320, "reduction_layer": 1}
    model = make_rnnt(encoder_conf=sizes, joint_net_conf={"joint_space_size": 256})
    bank = add(model, "pa")
    batch = make_batch(["hi", "hi"], frames=[frames, frames])
    before = run(model, bank, batch, [0, 1], ["hi", "hi"])
    after = run(model, bank, batch, [0, 1], ["hi", "pa"])
    assert torch.equal(before[0][0], after[0][0, :, :V])
    assert before[2][0].tokens == after[2][0].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_equals_each_alone(kind, make_rnnt, batch):
    model = make_rnnt(**KINDS[kind])
    bank = add(model, "pa")
    if kind == "conformer":  # the path that logits are of ends at the longest's last frame
        batch.lens[:] = 31
    with torch.no_grad():
        bank.own_of("pa").at("joint.lin_out")["bias"] += 3.0  # so that own tokens are found
    logits, losses, found = run(model, bank, batch, [0, 1, 2], ["hi", "pa", "ur"])
    assert any(token >= V for token in found[1].tokens)
    for row, language in enumerate(["hi", "pa", "ur"]):
        alone, loss, hypotheses = run(model, bank, batch, [row], [language])
        frames = alone.shape[1]
        torch.testing.assert_close(logits[row, :frames, : alone.shape[-1]], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-5, atol=1e-5)
        assert found[row].tokens == hypotheses[0].tokens
        assert found[row].score == pytest.approx(hypotheses[0].score, abs=1e-4)


def test_two_new_languages_with_different_tokens(make_rnnt, batch):
    model = make_rnnt()
    bank = add(model, "pa")
    bank.add("ne", own=OwnParts(model, ["x", "y", "z"], vector=True))
    with torch.no_grad():
        for parameter in bank.own_of("ne").parameters():
            torch.nn.init.normal_(parameter)
    batch.targets[2] = torch.tensor([V + 2, V, 2])
    _, losses, found = run(model, bank, batch, [0, 1, 2], ["hi", "pa", "ne"])
    for row, language in enumerate(["hi", "pa", "ne"]):
        _, loss, hypotheses = run(model, bank, batch, [row], [language])
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-5, atol=1e-5)
        assert found[row].tokens == hypotheses[0].tokens


def test_only_own_parts_and_adapters_train(make_rnnt, batch):
    model = make_rnnt(ctc_weight=0.3)
    bank = add(model, "pa")
    with bank.route(["pa"] * 3):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    bank.check_gradients(["pa"])
    assert all(parameter.grad is None for parameter in model.parameters())
    gradients = {name: tensor.grad for name, tensor in bank.own_of("pa").tensors().items()}
    wanted = {"prediction.embed/weight", "joint.lin_out/weight", "joint.lin_out/bias", "ctc/weight", "ctc/bias"}
    assert set(gradients) == wanted | {"language_vector/vector"}
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients.values())
    assert set(gradients) <= set(bank.tensors("pa"))


def test_ctc_of_a_mixed_batch_has_finite_gradients(make_rnnt, batch):
    """Columns of other languages' tokens are minus infinity."""
    model = make_rnnt(ctc_weight=0.3)
    bank = add(model, "pa")
    with bank.route(["hi", "pa", "ur"]):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in bank.parameters() if p.grad is not None)


def test_count(make_rnnt, make_st):
    """P (D + J + 1) for the prediction network and the joint network, 3 for the onehot vector of three languages."""
    model = make_rnnt()
    own = OwnParts(model, OWN, vector=True)
    assert sum(p.numel() for p in own.parameters()) == 2 * (6 + 6 + 1) + 3
    assert sum(p.numel() for p in OwnParts(model, [], vector=True).parameters()) == 3
    translator = make_st()  # D = 6; its output layer has no bias, and it has no language vector
    assert sum(p.numel() for p in OwnParts(translator, OWN, vector=True).parameters()) == 2 * (6 + 6)


def test_starting_values(make_rnnt):
    """The mean of the rows of some tokens, and of the vectors of some languages."""
    model = make_rnnt(language_vector="embedding", language_vector_size=2)
    own = OwnParts(model, ["ਕ", "ਖ"], vector=True)
    own.start_from(model, [[2, 3], [4]], [0, 2])
    rows = model.prediction.embed.weight
    first, second = own.at("prediction.embed")["weight"]
    assert torch.equal(first, rows[[2, 3]].mean(0)) and torch.equal(second, rows[4])
    assert torch.equal(own.at("joint.lin_out")["bias"][0], model.joint.lin_out.bias[[2, 3]].mean(0))
    vectors = model.language_vector.embedding.weight
    assert torch.equal(own.at("language_vector")["vector"], vectors[[0, 2]].mean(0))


def dense_loss(enc, pred, weight, bias, targets, enc_lens, target_lens):
    """Each utterance by itself with an output layer of its own."""
    parts = [
        transducer_loss(enc[b : b + 1], pred[b : b + 1], weight[b], bias[b], targets[b : b + 1], t[None], u[None])
        for b, (t, u) in enumerate(zip(enc_lens, target_lens, strict=True))
    ]
    return torch.cat(parts)


def test_transducer_loss_with_own_tokens():
    """Loss and gradients are those of an output layer that has the own rows below the shared ones."""
    torch.manual_seed(0)
    enc, pred = torch.randn(3, 6, 4, requires_grad=True), torch.randn(3, 4, 4, requires_grad=True)
    weight, bias = torch.randn(5, 4, requires_grad=True), torch.randn(5, requires_grad=True)
    own_weight, own_bias = torch.randn(3, 2, 4), torch.randn(3, 2)
    own_bias[0], own_bias[2, 1] = -torch.inf, -torch.inf
    own = [own_weight.requires_grad_(), own_bias.requires_grad_()]
    targets = torch.tensor([[1, 4, 2], [5, 3, 6], [5, 1, 1]])
    lengths = torch.tensor([6, 5, 4]), torch.tensor([3, 3, 1])
    inputs = [enc, pred, weight, bias, *own]
    fused = transducer_loss(*inputs[:4], targets, *lengths, tuple(own))
    factors = torch.tensor([1.0, 2.0, -0.5])
    found = torch.autograd.grad((fused * factors).sum(), inputs)
    weights = [torch.cat([weight, own_weight[b]]) for b in range(3)]
    biases = [torch.cat([bias, own_bias[b]]) for b in range(3)]
    plain = dense_loss(enc, pred, weights, biases, targets, *lengths)
    torch.testing.assert_close(fused, plain)
    for mine, wanted in zip(found, torch.autograd.grad((plain * factors).sum(), inputs), strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("options", [{}, {"ctc_weight": 0.3}], ids=["attention", "hybrid"])
def test_translation(options, beam_size, make_st, make_batch):
    """A new target: its tag and its letters are own tokens. Others' logits are bit-equal, alone and mixed are equal."""
    model = make_st(**options)
    shared = model.end + 1
    bank = add(model, "en-uk", ["<lang:uk>", "ж", "щ"])
    batch = make_batch(["hi", "hi", "hi"])
    batch.target_lens[:] = 3
    batch.targets[1] = torch.tensor([shared + 1, 2, shared + 2])
    batch.prefix = torch.tensor([[7], [shared], [8]])

    def search(rows, languages):
        with bank.route(languages), torch.no_grad():
            enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
            return model.search(enc, lens, batch.prefix[rows], beam_size)

    mixed = run(model, bank, batch, [0, 1, 2], ["hi", "en-uk", "ur"])
    found = search([0, 1, 2], ["hi", "en-uk", "ur"])
    for row, language in enumerate(["hi", "en-uk", "ur"]):
        alone = run(model, bank, batch, [row], [language])
        torch.testing.assert_close(mixed[0][row, :, : alone[0].shape[-1]], alone[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed[1][row], alone[1][0], rtol=1e-5, atol=1e-5)
        hypothesis = search([row], [language])[0]
        assert hypothesis.tokens == found[row].tokens
        assert hypothesis.score == pytest.approx(found[row].score, abs=1e-4)
    batch.targets[1], batch.prefix[1] = 1, 7
    before = run(model, bank, batch, [0, 1, 2], ["hi", "hi", "ur"])
    for row in (0, 2):
        assert torch.equal(mixed[0][row, :, :shared], before[0][row])


def test_smoothing_is_over_the_tokens_that_a_row_has():
    from pelasr.backbones.st import cross_entropy

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 6), torch.tensor([[1, 2, -100], [5, 0, 3]])
    logits[0, :, 4:] = -torch.inf
    found = cross_entropy(logits, labels, 0.1, shared=4)
    for row, size in ((0, 4), (1, 6)):
        wanted = F.cross_entropy(logits[row, :, :size], labels[row], label_smoothing=0.1, reduction="none")
        torch.testing.assert_close(found[row], wanted)


def test_without_adapters_a_new_language_has_the_mean_vector(make_rnnt, batch):
    model = make_rnnt(language_vector="embedding", language_vector_size=2)
    install(model)
    unadapted = Unadapted(model, ["hi", "ur"])
    mean = model.language_vector.embedding.weight[:2].mean(0)

    def encode(context):
        with context, torch.no_grad():
            return model.encode(batch.feats, batch.lens, batch.language_ids)[0]

    found = encode(unadapted.route(["hi", "pa", "ur"]))
    plain = encode(nullcontext())
    with torch.no_grad():
        model.language_vector.embedding.weight[0] = mean
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    assert torch.equal(found[1], encode(nullcontext())[1])


def test_one_pack_serves_all(make_rnnt, batch):
    """The adapters are pa's for every row, its vector and tokens are for its own rows alone."""
    model = make_rnnt()
    bank = add(model, "pa")
    served = Served(bank, "pa")
    found = run(model, served, batch, [0, 1, 2], ["hi", "pa", "ur"])[0]
    with bank.route(["pa"] * 3), torch.no_grad():
        enc = model.encode(batch.feats, batch.lens, batch.language_ids)
        assert torch.equal(model.logits(*enc, batch.targets, batch.target_lens)[1], found[1])
    assert bool((found[[0, 2], :, V:] == -torch.inf).all())
    with bank.route(["pa"] * 3), routed([None], None), torch.no_grad():
        enc = model.encode(batch.feats, batch.lens, batch.language_ids)
        labels = batch.targets.clamp(max=V - 1)
        assert torch.equal(model.logits(*enc, labels, batch.target_lens)[[0, 2]], found[[0, 2], :, :V])


def test_sites_of_new_languages_alone(make_rnnt, batch):
    """The prediction network has adapters for the new language; the others' rows are bit-equal with it in the batch."""
    model = make_rnnt()
    install(model)
    freeze(model)
    torch.manual_seed(0)
    bank = Bank("houlsby", {"bottleneck": 3, "sites": {"known": "layer", "new": ["layer", "prediction"]}}, model)
    for known in ("hi", "ur"):
        bank.add(known)
    bank.add("pa", own=OwnParts(model, OWN, vector=True))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    bank.eval()
    more = {path for path in bank.of("pa") if path.startswith("prediction.")}
    assert set(bank.of("pa")) == set(bank.of("hi")) | more and len(more) == 2
    after, losses, found = run(model, bank, batch, [0, 1, 2], ["hi", "pa", "ur"])
    for row, language in enumerate(["hi", "pa", "ur"]):
        alone, loss, hypotheses = run(model, bank, batch, [row], [language])
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-5, atol=1e-5)
        assert found[row].tokens == hypotheses[0].tokens
    batch.targets[1] = 1
    before, _, _ = run(model, bank, batch, [0, 1, 2], ["hi", "hi", "ur"])
    assert torch.equal(after[0, :, :V], before[0]) and torch.equal(after[2, :, :V], before[2])
    with bank.route(["hi", "pa", "ur"]):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
        model.loss(enc, lens, batch.targets, batch.target_lens).total.sum().backward()
    bank.check_gradients(["hi", "pa", "ur"])
