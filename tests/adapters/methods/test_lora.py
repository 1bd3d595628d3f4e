"""LoRA against its formula and against PEFT: outputs, gradients, start and sizes; what it refuses."""

import copy
import warnings

import pytest
import torch
from tiny_models import TAGS
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.fold import fold
from pelasr.adapters.freeze import freeze
from pelasr.adapters.methods.lora import Lora
from pelasr.backbones.base import build_backbone
from pelasr.errors import PelasrError

PAPER = {"output_size": 768, "attention_heads": 12, "linear_units": 3072, "num_blocks": 12}


def make_bank(model, languages=("hi", "ur"), **options):
    """A bank with random weights."""
    torch.manual_seed(0)
    bank = Bank("lora", options, model)
    for language in languages:
        bank.add(language)
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bank.eval()


class Maps(nn.Module):
    """Two linear maps with a kink between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5, bias=False)

    def forward(self, x):
        return self.second(self.first(x).relu())

    def sites(self):
        return {"linear": {"first": 8, "second": 5}}


def pefts(model, targets, bank, language, **options):
    """A model with PEFT's LoRA in it, with a language's weights."""
    from peft import LoraConfig, inject_adapter_in_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = inject_adapter_in_model(LoraConfig(target_modules=targets, **options), model)
    for path in filter(lambda path: hasattr(made.get_submodule(path), "lora_A"), bank.sites):
        layer = made.get_submodule(path)
        for letter in "ab":
            weight = bank.tensors(language)[f"{path}/{letter}.weight"]
            getattr(layer, f"lora_{letter.upper()}")["default"].weight.data.copy_(weight)
        if options.get("use_dora"):
            length = layer.base_layer.weight.norm(dim=1) + bank.tensors(language)[f"{path}/magnitude"]
            layer.lora_magnitude_vector["default"].weight.data.copy_(length)
    return made


def same_gradients(bank, language, theirs):
    """Those of A and B at every site."""
    for path in bank.sites:
        layer = theirs.get_submodule(path)
        for letter in "ab":
            ours = bank.tensors(language)[f"{path}/{letter}.weight"].grad
            wanted = getattr(layer, f"lora_{letter.upper()}")["default"].weight.grad
            assert ours.any()
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
        if "default" in layer.lora_magnitude_vector:
            wanted = layer.lora_magnitude_vector["default"].weight.grad
            torch.testing.assert_close(bank.tensors(language)[f"{path}/magnitude"].grad, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_fresh_is_the_identity(dora):
    torch.manual_seed(0)
    adapter = Lora(nn.Linear(4, 6), rank=3, dora=dora)
    y = torch.randn(2, 5, 6) * torch.tensor([1e-6, 1.0, 1e6, 0.0, -1.0, 3.0])
    assert torch.equal(adapter(torch.randn(2, 5, 4), y), y)
    assert adapter.a.weight.any()  # or nothing would ever train


def test_formula():
    """y + alpha / rank B A x, written out in float64."""
    torch.manual_seed(0)
    adapter = Lora(nn.Linear(4, 6), rank=3, alpha=5.0).eval()
    nn.init.normal_(adapter.b.weight)
    x, y = torch.randn(2, 7, 4), torch.randn(2, 7, 6)
    a, b = adapter.a.weight.double(), adapter.b.weight.double()
    wanted = y.double() + 5 / 3 * torch.einsum("or,ri,bti->bto", b, a, x.double())
    torch.testing.assert_close(adapter(x, y).double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter(x[:, 0], y[:, 0]).double(), wanted[:, 0], rtol=1e-5, atol=1e-6)


def test_defaults_and_start_are_pefts():
    from peft import LoraConfig

    theirs, ours = LoraConfig(target_modules=["first"]), Lora(nn.Linear(6, 8))
    assert tuple(ours.a.weight.shape) == (theirs.r, 6) and ours.scale == theirs.lora_alpha / theirs.r
    assert theirs.lora_dropout == ours.dropout.p == 0.0
    bank = Bank("lora", {"sites": "linear"}, Maps())
    bank.add("hi")
    made = pefts(Maps(), ["first", "second"], bank, "hi")  # of the same sizes
    for path in bank.sites:  # drawn by PEFT from the same seed
        torch.manual_seed(3)
        fresh = Lora(made.get_submodule(path).base_layer)
        torch.manual_seed(3)
        made.get_submodule(path).reset_lora_parameters("default", True)
        assert torch.equal(made.get_submodule(path).lora_A["default"].weight, fresh.a.weight)
        assert torch.equal(made.get_submodule(path).lora_B["default"].weight, fresh.b.weight)


@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, False), (False, True), (True, True)])
def test_outputs_and_gradients_are_pefts(rslora, dora):
    """The magnitudes' gradients too, and none through the length of the rows."""
    torch.manual_seed(1)
    model = Maps()
    theirs = copy.deepcopy(model)
    bank = make_bank(model, rank=3, alpha=5.0, rslora=rslora, dora=dora)
    theirs = pefts(theirs, ["first", "second"], bank, "ur", r=3, lora_alpha=5.0, use_rslora=rslora, use_dora=dora)
    freeze(model)
    x = torch.randn(4, 7, 6)
    with bank.route(["ur"] * 4):
        ours = model(x)
    wanted = theirs(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    ours.square().sum().backward()
    wanted.square().sum().backward()
    same_gradients(bank, "ur", theirs)


def test_a_mixed_batch_is_pefts():
    """Their `adapter_names`, which loop over the adapters."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model, x, languages = Maps(), torch.randn(5, 7, 6), ["hi", "ur", "ur", "hi", "ur"]
    config = LoraConfig(target_modules=["first", "second"], r=3, lora_alpha=8)
    theirs = get_peft_model(copy.deepcopy(model), config, adapter_name="hi")
    bank = make_bank(model, rank=3)
    theirs.add_adapter("ur", config)
    for language in ("hi", "ur"):
        for path in bank.sites:
            layer = theirs.base_model.model.get_submodule(path)
            layer.lora_A[language].weight.data.copy_(bank.tensors(language)[f"{path}/a.weight"])
            layer.lora_B[language].weight.data.copy_(bank.tensors(language)[f"{path}/b.weight"])
    with bank.route(languages):
        ours = model(x)
    torch.testing.assert_close(ours, theirs.eval()(x, adapter_names=languages), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoder", ["transformer", "conformer"])
def test_a_translator_with_it_is_pefts(encoder, make_st, make_batch):
    """On q and v of all attention, encoder and decoder: loss 1e-6, gradients of all A and B."""
    model, batch = make_st(encoder), make_batch(["hi", "hi", "hi"])
    theirs = copy.deepcopy(model)
    freeze(model)
    bank = make_bank(model, sites=["q", "v"], rank=2, alpha=3.0)
    pefts(theirs, ["linear_q", "linear_v"], bank, "hi", r=2, lora_alpha=3.0)

    def loss(model):
        enc, lens = model.encode(batch.feats, batch.lens)
        prefix = torch.full((3, 1), TAGS[0])
        return model.loss(enc, lens, batch.targets, batch.target_lens, prefix).total

    with bank.route(batch.languages):
        ours = loss(model)
    wanted = loss(theirs)
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    ours.sum().backward()
    wanted.sum().backward()
    same_gradients(bank, "hi", theirs)


def test_rows_of_dora_are_those_of_each_language():
    torch.manual_seed(1)
    model, x, languages = Maps(), torch.randn(5, 7, 6), ["hi", "ur", "ur", "hi", "ur"]
    bank = make_bank(model, rank=3, dora=True)
    with bank.route(languages):
        mixed = model(x)
    for row, language in enumerate(languages):
        with bank.route([language]):
            torch.testing.assert_close(model(x[row : row + 1])[0], mixed[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_fold(dora):
    torch.manual_seed(1)
    model, x = Maps(), torch.randn(2, 7, 6)
    bank = make_bank(model, rank=3, rslora=True, dora=dora)
    with bank.route(["hi", "hi"]):
        adapted = model(x)
    fold(model, bank, "hi")
    torch.testing.assert_close(model(x), adapted, rtol=1e-5, atol=1e-5)


def test_dora_goes_with_a_copy_of_the_backbone():
    """A copy looks at the copied host; packs have no host's weights."""
    torch.manual_seed(1)
    model, x = Maps(), torch.randn(2, 7, 6)
    bank = make_bank(model, rank=3, dora=True)
    assert {name.rpartition("/")[2] for name in bank.tensors("hi")} == {"a.weight", "b.weight", "magnitude"}
    assert bank.size("hi") == 3 * (6 + 8) + 8 + 3 * (8 + 5) + 5
    with bank.route(["hi", "ur"]):
        wanted = model(x)
    copied, others = copy.deepcopy((model, bank))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    with others.route(["hi", "ur"]):
        torch.testing.assert_close(copied(x), wanted)
    assert others.of("hi")["first"].host[0] is copied.first


def test_dora_of_rows_without_length():
    """A row of zeros has no direction; its output stays finite, and as it is."""
    torch.manual_seed(0)
    host = nn.Linear(4, 6)
    nn.init.zeros_(host.weight)
    adapter, x = Lora(host, rank=3, dora=True), torch.randn(2, 5, 4)
    found = adapter(x, host(x))
    assert torch.equal(found, host(x))
    found.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in adapter.parameters())


def test_dropout_of_dora_is_pefts():
    """The whole map sees dropped inputs in training."""
    torch.manual_seed(1)
    model = Maps()
    bank = make_bank(model, rank=3, dora=True, dropout=0.5).train()
    theirs = pefts(copy.deepcopy(model), ["first"], bank, "ur", r=3, lora_alpha=8, use_dora=True, lora_dropout=0.5)
    x = torch.randn(4, 7, 6)
    torch.manual_seed(2)
    ours = bank.of("ur")["first"](x, model.first(x))
    torch.manual_seed(2)
    torch.testing.assert_close(ours, theirs.train().first(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_in_training_only(dora):
    torch.manual_seed(0)
    adapter = Lora(nn.Linear(4, 6), rank=3, dropout=0.5, dora=dora).eval()
    nn.init.normal_(adapter.b.weight)
    x, y = torch.randn(2, 7, 4), torch.randn(2, 7, 6)
    assert torch.equal(adapter(x, y), adapter(x, y))
    adapter.train()
    assert not torch.equal(adapter(x, y), adapter(x, y))


def test_size_of_the_paper():
    """Rank 8 on q and k of 12 layers of 768 (Chen et al. 2022): 294,912."""
    with torch.device("meta"):
        model = build_backbone("rnnt", {"encoder": "transformer", "encoder_conf": PAPER}, 50, 1)
        bank = Bank("lora", {"sites": ["q", "k"], "rank": 8}, model)
        bank.add("hi")
    assert bank.size("hi") == 12 * 2 * 8 * (768 + 768) == 294_912


def test_a_side_alone(make_st, make_rnnt):
    model = make_st()
    bank = make_bank(model, sites=["q", "v"], rank={"encoder": 0, "decoder": 4})
    assert not bank.touches("encoder") and bank.size("hi") == 4 * 2 * 4 * 2 * (6 + 6) / 2
    both = make_bank(make_st(), sites=["q", "v"], rank={"encoder": 2, "decoder": 4})
    assert both.size("hi") == bank.size("hi") + 2 * 2 * 2 * (6 + 6)
    # Of an RNN-T all that comes after the encoder is the decoder's side.
    joint = make_bank(make_rnnt(), rank={"encoder": 0, "decoder": 4})
    assert list(joint.sites) == ["joint.lin_enc", "joint.lin_dec"] and not joint.touches("encoder")
    with pytest.raises(PelasrError, match="rank 0 everywhere leaves no adapter"):
        make_bank(make_rnnt(), rank={"encoder": 4, "decoder": 0})


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("lstm", r"site encoder.layers.0.lstm: lora adapts linear maps that are modules \(nn.Linear\), not LSTM: "),
        ("layer", r"site encoder.layers.0: lora .* not ProjectedLSTM: "),
        ("norm", r"site encoder.layers.0.norm: lora .* not LayerNorm: "),
        ("q", "adapter lora needs a site 'q'; known: .*joint.*linear"),
    ],
)
def test_what_is_no_linear_map_is_refused(sites, message, make_rnnt):
    with pytest.raises(PelasrError, match=message) as error:
        make_bank(make_rnnt(), sites=sites)
    assert "\n" not in str(error.value)
