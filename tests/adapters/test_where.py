"""Methods made of parts, what they may be given beside x and y, and what of them a pack holds."""

import pytest
import torch
from tiny_models import LANGUAGES

from pelasr.adapters.bank import Bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.hooks import added_losses
from pelasr.backbones.store import LoadedBackbone
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.errors import PelasrError
from pelasr.packs.pack import load_bank, read_pack, save_pack
from pelasr.storage import load_weights, state_sha256

METHODS = '''
import torch
from torch import nn

from pelasr.adapters import Adapter


class Scaled(Adapter):
    """y' = (1 + s) y; in training s is a product of two."""

    by_row = True

    def __init__(self, width, index, start: float = 0.5, factors: int = 2):
        super().__init__()
        self.index = index
        self.factors = nn.ParameterList(torch.full((width,), start) for _ in range(factors))

    def forward(self, x, y):
        scale = self.factors[0]
        for factor in list(self.factors)[1:]:
            scale = scale * factor
        return y * (1 + scale).unsqueeze(-2)

    @torch.no_grad()
    def settle(self):
        product = torch.stack(list(self.factors)).prod(0)
        self.factors = nn.ParameterList([nn.Parameter(product)])


class Mean(Adapter):
    """Every frame gets a share of the mean of its utterance, which is to be small."""

    sides = ("encoder",)
    needs = ("inside",)

    def __init__(self, width):
        super().__init__()
        self.share = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x, y, inside):
        mean = (y * inside[..., None]).sum(1, keepdim=True) / inside.sum(1)[:, None, None]
        return y + mean * self.share.unsqueeze(-2)


class Chain(Adapter):
    """Each site adds what the one before it has found."""

    by_row = True
    needs = ("shared",)

    def __init__(self, width, index):
        super().__init__()
        self.index, self.gain = index, nn.Parameter(torch.ones(width))

    def forward(self, x, y, shared):
        before = shared.values.get(self.index - 1, 0)
        shared.values[self.index] = (y * self.gain.unsqueeze(-2)).mean((1, 2))
        shared.losses[self.index] = shared.values[self.index] + before
        return y
'''
CHOSEN = {"scaled": "Scaled", "mean": "Mean", "chain": "Chain"}
BOTH = """
from pelasr.adapters import Adapter
from pelasr.adapters.base import find_method


class Both(Adapter):
    parts = {"layer": find_method("scaled"), "prediction": find_method("mean"), "norm": find_method("mean")}
"""


@pytest.fixture(autouse=True)
def methods(tmp_path, monkeypatch):
    folder = tmp_path / "local/methods"
    folder.mkdir(parents=True)
    for name, cls in CHOSEN.items():
        others = "".join(f"\ndel {other}" for other in CHOSEN.values() if other != cls)
        (folder / f"{name}.py").write_text(METHODS + others + "\n")
    (folder / "both.py").write_text(BOTH)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(make_rnnt):
    model = make_rnnt()
    freeze(model)
    return model


def bank_of(method, model, languages=LANGUAGES, **options):
    bank = Bank(method, options, model)
    for language in languages:
        bank.add(language)
    return bank


def encode(model, batch, rows=slice(None)):
    return model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])


def test_parts_hang_where_they_belong(model):
    bank = bank_of("both", model, start=0.25)
    classes = {path: type(adapter).__name__ for path, adapter in bank.of("hi").items()}
    layers = list(model.sites()["layer"])
    # The means hang in the encoder alone, whose layers have a norm each; the prediction network is the decoder's.
    assert classes == dict.fromkeys(layers, "Scaled") | {f"{layer}.norm": "Mean" for layer in layers}
    assert [bank.of("hi")[layer].index for layer in layers] == [0, 1, 2]
    assert bank.of("hi")[layers[0]].factors[0][0] == 0.25
    assert set(Bank("both", {"sites": ["norm"]}, model).sites) == {f"{layer}.norm" for layer in layers}


def test_what_parts_refuse(model):
    with pytest.raises(PelasrError, match="sites: both has nothing for 'joint'; known: layer, norm, prediction"):
        Bank("both", {"sites": "joint"}, model)
    with pytest.raises(PelasrError, match="adapter_conf of both: unknown key 'shrae'"):
        Bank("both", {"shrae": 1}, model)
    with pytest.raises(PelasrError, match="leaves no adapter"):
        Bank("both", {"sites": "prediction"}, model)


@pytest.mark.parametrize("languages", [["hi"] * 4, ["hi", "ur", "pa", "ur"]])
def test_a_mean_does_not_see_what_pads_the_batch(languages, model, make_batch):
    batch = make_batch(languages)
    bank = bank_of("mean", model)
    with torch.no_grad(), bank.route(batch.languages):
        together, lens = encode(model, batch)
    for row, language in enumerate(languages):
        with torch.no_grad(), bank.route([language]):
            alone, _ = encode(model, batch, [row])
        torch.testing.assert_close(together[row, : lens[row]], alone[0, : lens[row]], atol=1e-5, rtol=0)


def test_frames_are_not_known_in_the_decoder(model, make_batch):
    model.sites = lambda: {"layer": {"prediction.layers.0.norm": 6}}
    model.side = lambda path: "encoder"
    bank, batch = bank_of("mean", model), make_batch(["hi", "ur"])
    with bank.route(batch.languages), pytest.raises(PelasrError, match="works on other frames than the encoder's"):
        enc, lens = encode(model, batch)
        model.loss(enc, lens, batch.targets, batch.target_lens)


def test_sites_share_what_they_find(model, make_batch):
    bank, batch = bank_of("chain", model), make_batch(["hi", "ur", "pa"])
    with bank.route(batch.languages):
        encode(model, batch)
        losses = added_losses()
        sum(losses).sum().backward()
    assert len(losses) == 3 and losses[0].shape == (3,)
    bank.check_gradients(LANGUAGES)
    assert added_losses() == []


def test_a_pack_holds_what_is_settled(model, make_batch, tmp_path):
    tokenizer = Tokenizer(train_graphemes(["abcd"]))
    backbone = LoadedBackbone(model, tokenizer, LANGUAGES, state_sha256(model.state_dict()), {})
    bank, batch = bank_of("scaled", model, ["hi"]).eval(), make_batch(["hi", "hi"])
    width = sum(bank.sites.values())
    assert bank.size("hi") == width and len(list(bank.parameters())) == 6
    save_pack(tmp_path / "hi", bank, "hi", bank.tensors("hi"), backbone, {})
    assert read_pack(tmp_path / "hi").parameters == width
    tensors = load_weights(tmp_path / "hi/pack.safetensors")
    assert len(tensors) == 3 and all((tensor == 0.25).all() for tensor in tensors.values())
    loaded = load_bank(tmp_path, ["hi"], backbone)
    with torch.no_grad(), bank.route(batch.languages):
        before, _ = encode(model, batch)
    with torch.no_grad(), loaded.route(batch.languages):
        after, _ = encode(model, batch)
    assert torch.equal(before, after)
    save_pack(tmp_path / "again", loaded, "hi", loaded.tensors("hi"), backbone, {})
    first, second = (tmp_path / name / "pack.safetensors" for name in ("hi", "again"))
    assert first.read_bytes() == second.read_bytes()
