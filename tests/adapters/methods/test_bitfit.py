"""BitFit against training the biases themselves; its sizes, and what has no bias to train."""

import copy

import pytest
import torch
from tiny_models import ST_ENCODERS, TAGS, VOCABULARY
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.fold import fold
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.bitfit import BitFit
from pelasr.adapters.own import OwnParts, install
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError
from pelasr.nn.positions import PositionBias

HOSTS = {
    "linear": (nn.Linear(4, 6), (3, 5, 4)),
    "linear of frames": (nn.Linear(4, 6), (3, 4)),
    "layer norm": (nn.LayerNorm(6), (3, 5, 6)),
    "batch norm": (nn.BatchNorm1d(6), (3, 6, 5)),
    "conv": (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 5)),
    "conv 2d": (nn.Conv2d(1, 6, 3, stride=2), (3, 1, 9, 7)),
}
MODELS = {
    "rnnt lstm": ("rnnt", {}),
    "rnnt conformer": ("rnnt", {"encoder": "conformer"}),
    "st conformer": ("st", {"encoder": "conformer"}),
    "st e_branchformer": ("st", {"encoder": "e_branchformer"}),
    "rnnt and ctc": ("rnnt", {"ctc_weight": 0.3}),
    "st and ctc": ("st", {"encoder": "conformer", "ctc_weight": 0.3}),
}


class Model(nn.Module):
    def __init__(self, host):
        super().__init__()
        self.host = host

    def forward(self, x):
        return self.host(x)

    def sites(self):
        return {"linear": {"host": 6}}


def make_bank(model, trained=True, **options):
    torch.manual_seed(0)
    bank = Bank("bitfit", options, model)
    for language in ("hi", "ur"):
        bank.add(language)
    if trained:
        for parameter in bank.parameters():
            nn.init.normal_(parameter)
    return bank.eval()


def every_kind(model):
    """Those of the method, as far as there are such, output layers and the biases of relative attention."""
    return [kind for kind in ("linear", "norm", "conv", "output", "position") if kind in model.sites()]


def bias_of(model, path):
    """The parameter that a site's adapter shifts."""
    host = model.get_submodule(path)
    if not isinstance(host, PositionBias):
        return host.bias
    return getattr(model.get_submodule(path.rpartition(".")[0]), host.name)


def loss(model, batch):
    enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    prefix = torch.full((len(batch), 1), TAGS[0]) if hasattr(model, "end") else None
    return model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total


@pytest.mark.parametrize("languages", [["hi", "hi", "hi"], ["hi", "ur", "hi"]])
@pytest.mark.parametrize("name", HOSTS)
def test_it_is_a_shift_of_the_bias(name, languages):
    """On every kind of host, whichever dimension its channels are."""
    host, shape = HOSTS[name]
    model, x = Model(copy.deepcopy(host)).eval(), torch.randn(shape)
    plain = model(x)
    bank = make_bank(model, trained=False)
    with bank.route(languages):
        assert torch.equal(model(x), plain)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    with bank.route(languages):
        found = model(x)
    for row, language in enumerate(languages):
        shifted = copy.deepcopy(model.host)
        shifted.bias.data += bank.tensors(language)["host/shift"]
        torch.testing.assert_close(found[row], shifted(x)[row], rtol=1e-5, atol=1e-6)
    assert found.stride() == plain.stride()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_biases(name, make_model, make_batch):
    """And three steps of SGD lead to where training the biases leads, of output layers too."""
    model, batch = make_model(*MODELS[name]), make_batch(["hi", "hi", "hi"])
    free = copy.deepcopy(model)
    freeze(model)
    bank = make_bank(model, trained=False, sites=every_kind(model))
    assert {"joint.lin_out", "ctc"} & {path for path, _ in model.named_modules()} <= set(bank.sites)
    biases = {path: bias_of(free, path) for path in bank.sites}
    optimizers = [torch.optim.SGD(each, lr=1e-2) for each in (bank.parameters(), biases.values())]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with bank.route(batch.languages):
            ours = loss(model, batch)
        wanted = loss(free, batch)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
        ours.sum().backward()
        wanted.sum().backward()
        for path, bias in biases.items():
            shift = bank.tensors("hi")[f"{path}/shift"].grad
            torch.testing.assert_close(shift, bias.grad.flatten(), rtol=1e-3, atol=1e-4)
        for optimizer in optimizers:
            optimizer.step()
    assert loss(free, batch).sum() < loss(model, batch).sum()


def test_it_trains_every_bias_that_a_module_adds(make_model):
    """All of linear maps, norms and convolutions, but those of the output layers, unless it is told."""
    model = make_model(*MODELS["st and ctc"])
    wanted = {name.removesuffix(".bias") for name, _ in model.named_parameters() if name.endswith(".bias")}
    assert set(make_bank(model).sites) == wanted - {"ctc"}
    wanted |= {path for path, module in model.named_modules() if isinstance(module, PositionBias)}
    assert len(wanted) > len(make_bank(model).sites) + 1
    bank = make_bank(model, sites=every_kind(model))
    assert set(bank.sites) == wanted
    assert bank.size("hi") == sum(model.get_submodule(path).bias.numel() for path in wanted)


def run(model, bank, batch, rows, languages):
    """Logits, losses, hypotheses."""
    rows = torch.tensor(rows)
    labels = batch.targets[rows], batch.target_lens[rows]
    with bank.route(languages), torch.no_grad():
        enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
        found = [each.tokens for each in model.search(enc, lens)]
        return model.logits(enc, lens, *labels), model.loss(enc, lens, *labels).total, found


def test_output_layers_with_own_tokens(make_rnnt, make_batch):
    """A new language shifts the tokens that all share; its own ones come after. Rows are as each alone, and as those
    of a model with the shifted biases."""
    model, batch = make_rnnt(ctc_weight=0.3), make_batch(["hi", "pa", "ur"], frames=[31, 31, 31])
    install(model)
    freeze(model)
    bank = Bank("bitfit", {"sites": "output"}, model)
    for language, own in (("hi", None), ("ur", None), ("pa", OwnParts(model, ["ਕ", "ਖ"], vector=True))):
        bank.add(language, own=own)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    batch.target_lens[:], batch.targets[1] = 3, torch.tensor([VOCABULARY, 2, VOCABULARY + 1])
    logits, losses, found = run(model, bank, batch, [0, 1, 2], batch.languages)
    assert logits.shape[-1] == VOCABULARY + 2
    for row, language in enumerate(batch.languages):
        alone, loss, tokens = run(model, bank, batch, [row], [language])
        torch.testing.assert_close(logits[row, :, : alone.shape[-1]], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-5, atol=1e-5)
        assert found[row] == tokens[0]
        moved = copy.deepcopy(model)
        for path in ("joint.lin_out", "ctc"):
            moved.get_submodule(path).bias.data += bank.tensors(language)[f"{path}/shift"]
        plain = Bank("output", {}, moved)
        plain.add(language, own=bank.own_of(language))
        other, loss, tokens = run(moved, plain, batch, [row], [language])
        torch.testing.assert_close(alone, other, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-5, atol=1e-5)
        assert found[row] == tokens[0]


def test_folded_output_layers(make_rnnt, make_batch):
    model, batch = make_rnnt(ctc_weight=0.3), make_batch(["ur", "ur"])
    bank = make_bank(model, sites=["output", "joint"])
    logits, losses, found = run(model, bank, batch, [0, 1], batch.languages)
    fold(model, bank, "ur")
    folded = run(model, Bank("output", {}, model), batch, [0, 1], [])
    torch.testing.assert_close(folded[0], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded[1], losses, rtol=1e-5, atol=1e-5)
    assert folded[2] == found


def test_only_shifts_go_on_output_layers(make_rnnt, make_st):
    with pytest.raises(PelasrError, match="adapter_conf: sites: output: losses take the weights .*, not lora"):
        Bank("lora", {"sites": ["joint", "output"]}, make_rnnt())
    with pytest.raises(PelasrError, match="adapter bitfit needs a site 'output'"):
        Bank("bitfit", {"sites": "output"}, make_st())  # its one output layer has no bias


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("conformer", {}), ("e_branchformer", {}), ("conformer", {"rnnt": True})],
    ids=["conformer", "e_branchformer", "conformer of an RNN-T"],
)
def test_an_utterance_is_the_same_alone_and_in_a_batch(encoder, options, make_st, make_rnnt, make_batch):
    """A bias before a convolution over time shifts what pads the batch as well, which the convolution must not see."""
    if options:
        model = make_rnnt(encoder, encoder_conf={**ST_ENCODERS[encoder], "input_layer": "linear"})
    else:
        model = make_st(encoder)
    batch = make_batch(["hi", "ur", "hi"], frames=[61, 23, 40])
    bank = make_bank(model)
    with bank.route(batch.languages):
        enc, lens = model.encode(batch.feats, batch.lens, batch.language_ids)
    for row, language in enumerate(batch.languages):
        one = slice(row, row + 1)
        with bank.route([language]):
            alone, _ = model.encode(batch.feats[one, : batch.lens[row]], batch.lens[one], batch.language_ids[one])
        torch.testing.assert_close(alone[0], enc[row, : lens[row]], rtol=1e-5, atol=1e-5)


def test_size_of_the_paper():
    """12 layers of 768 and 3072 (Ben Zaken et al. 2022): 101,376."""
    conf = {"output_size": 768, "attention_heads": 12, "linear_units": 3072, "num_blocks": 12}
    with torch.device("meta"):
        bank = Bank("bitfit", {}, build_backbone("rnnt", {"encoder": "transformer", "encoder_conf": conf}, 50, 1))
        bank.add("hi")
    layers = {name: tensor for name, tensor in bank.tensors("hi").items() if ".encoders." in name}
    assert sum(map(torch.numel, layers.values())) == 12 * (4 * 768 + 3072 + 768 + 2 * 768) == 101_376


def test_what_has_no_bias(make_rnnt):
    """Bias-free maps are left out, what is no map at all is refused."""
    model = make_rnnt()
    assert model.joint.lin_dec.bias is None
    assert list(Bank("bitfit", {"sites": "joint"}, model).sites) == ["joint.lin_enc"]
    with pytest.raises(PelasrError, match="site encoder.layers.0.lstm: bitfit .* not LSTM: .*fused"):
        make_bank(model, sites="lstm")
    with pytest.raises(PelasrError, match="site encoder.layers.0: bitfit .* not ProjectedLSTM"):
        make_bank(model, sites="layer")
    with pytest.raises(PelasrError, match="bitfit at these sites leaves no adapter"):
        Bank("bitfit", {}, Model(nn.Linear(4, 6, bias=False)))
    with pytest.raises(PelasrError, match="bitfit adapts the bias"):
        BitFit(nn.Linear(4, 6, bias=False))
