"""The RNN-T: its size, against the paper's formula."""

import json
from pathlib import Path

import pytest
import torch

from pelasr.adapters.bank import Bank, count_parameters
from pelasr.adapters.freeze import freeze
from pelasr.backbones.base import build_backbone
from pelasr.backbones.rnnt import LSTMEncoder
from pelasr.cli.main import main
from pelasr.config import load_yaml, override
from pelasr.stages.params import count
from pelasr.stages.settings import split_options
from pelasr.storage import state_sha256

ROOT = Path(__file__).parents[2]
KANNAN = ROOT / "conf/rnnt_kannan2019.yaml"
H, P = 2048, 640  # cells and projection of the paper's layers


def projected_lstm(inputs):
    """The paper's layer, and the second bias vector that torch's has."""
    return 4 * H * (inputs + P) + 4 * H + H * P + 4 * H


def kannan(vocabulary, languages, vector=True):
    inputs = 80 * 4 + (languages if vector else 0)
    encoder = projected_lstm(inputs) + projected_lstm(2 * P) + 6 * projected_lstm(P) + 8 * 2 * P
    prediction = vocabulary * P + 2 * projected_lstm(P)
    joint = (P * P + P) + P * P + (P * vocabulary + vocabulary)
    return encoder + prediction + joint


def meta_backbone(**overrides):
    family, options, *_ = split_options(override(load_yaml(KANNAN), overrides), "test")
    with torch.device("meta"):
        return build_backbone(family, options, vocab_size=500, num_languages=9)


def test_size_of_the_papers_model():
    layers = [projected_lstm(n) - 4 * H for n in (329, 640, 1280)]
    assert layers[0] + layers[2] + 6 * layers[1] == 97_132_544  # the arithmetic of the paper's encoder
    backbone = count_parameters(meta_backbone())["backbone"]
    assert backbone == kannan(500, 9)
    assert 121e6 < backbone < 123e6
    without = count_parameters(meta_backbone(language_vector="none"))["backbone"]
    assert without == kannan(500, 9, vector=False) == backbone - 4 * H * 9


@pytest.mark.parametrize(("bottleneck", "size"), [(256, 2_638_848), (240, 2_474_880), (128, 1_327_104)])
def test_size_of_the_papers_adapters(bottleneck, size):
    model = meta_backbone()
    freeze(model)
    with torch.device("meta"):
        bank = Bank("houlsby", {"bottleneck": bottleneck}, model)
        for language in ("hi", "ur"):
            bank.add(language)
    report = count_parameters(model, bank)
    assert report["adapter_per_language"] == size == 8 * (2 * P + 2 * P * bottleneck + bottleneck + P)
    assert report["trainable"] == 2 * size
    assert report["total"] == report["backbone"] + 2 * size
    assert size <= 0.025 * report["backbone"]


def test_params_command(capsys):
    """Counted on live modules, with the real configuration files."""
    adapter = ROOT / "conf/adapter/houlsby.yaml"
    main(["params", "--config", str(KANNAN), "--adapter", str(adapter), "--vocab_size", "321", "--json"])
    backbone, each = kannan(321, 9), 2_638_848
    assert json.loads(capsys.readouterr().out) == {
        "backbone": backbone,
        "adapter_per_language": each,
        "trainable": 9 * each,
        "total": backbone + 9 * each,
    }


def test_count_without_adapters():
    report = count(load_yaml(ROOT / "conf/rnnt_mini.yaml"), None, "test", vocab_size=50, num_languages=3)
    assert report["trainable"] == report["backbone"] == report["total"] and report["adapter_per_language"] == 0


def test_one_step_of_the_full_model():
    """122 M parameters on a CPU: the loss falls after a step of the backbone, and after one of the adapters alone."""
    family, options, *_ = split_options(load_yaml(KANNAN), "test")
    torch.manual_seed(0)
    model = build_backbone(family, options, vocab_size=500, num_languages=9)
    feats, lens, ids, losses = torch.randn(2, 40, 80), torch.tensor([40, 35]), torch.tensor([0, 8]), []
    targets, target_lens = torch.randint(1, 500, (2, 4)), torch.tensor([4, 3])

    def step(parameters):
        enc, enc_lens = model.encode(feats, lens, ids)
        loss = model.loss(enc, enc_lens, targets, target_lens).total.sum()
        loss.backward()
        torch.optim.SGD(parameters, lr=1e-3).step()
        losses.append(loss.item())

    step(model.parameters())
    model.zero_grad()
    freeze(model)
    bank = Bank("houlsby", {"bottleneck": 256}, model)
    bank.add("hi")
    bank.add("ur")
    before = state_sha256(model.joint.state_dict())
    with bank.route(["hi", "ur"]):
        step(bank.parameters())
        step(bank.parameters())
    bank.check_gradients(["hi", "ur"])
    assert losses[0] > losses[1] > losses[2]
    assert state_sha256(model.joint.state_dict()) == before


def test_layers_and_time_scales():
    model = meta_backbone()
    assert model.subsampling == 6
    assert model.sites()["layer"] == {f"encoder.layers.{n}": 640 for n in range(8)}
    assert [layer.lstm.input_size for layer in model.encoder.layers] == [329, 640, 1280, *[640] * 5]
    assert [layer.lstm.proj_size for layer in model.encoder.layers] == [640] * 8


def test_encoder_defaults_are_the_papers():
    with torch.device("meta"):
        encoder = LSTMEncoder(input_size=329)
    assert sum(p.numel() for p in encoder.parameters()) == 97_132_544 + 8 * 4 * H + 8 * 2 * P
