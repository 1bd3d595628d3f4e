"""What a new language starts from, and the measurement of what it changes for the others."""

import pytest
import torch

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import OwnParts, routed
from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone, load_backbone
from pelasr.data.place import Place
from pelasr.data.tokenizer import SPECIAL, Tokenizer, train_graphemes
from pelasr.packs.pack import load_bank, save_pack
from pelasr.stages import forgetting
from pelasr.stages.experiment import Experiment
from pelasr.storage import save_weights
from pelasr.train.new_language import _sample, make_own, nearest_pack
from pelasr.train.options import AdapterConfig, TrainingOptions

OPTIONS = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1},
    "decoder_conf": {"num_layers": 1, "hidden_size": 8, "output_size": 6},
    "joint_net_conf": {"joint_space_size": 6},
}
ENCODER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 1}


@pytest.fixture
def place(prepared, tmp_path):
    """`hi` and `ta` are the backbone's, `ur` comes later."""
    return Place(prepared / "data", prepared / "dump", tmp_path, ["hi", "ta"])


@pytest.fixture
def backbone(place, monkeypatch):
    monkeypatch.chdir(place.data.parent)  # paths of audio are relative
    texts = [(place.data / f"train_{name}/text").read_text(encoding="utf-8") for name in ("hi", "ta")]
    words = [line.partition(" ")[2] for text in texts for line in text.splitlines()]
    Tokenizer(train_graphemes([*words, "क ख"])).save(place.exp / "tokens")
    torch.manual_seed(0)
    module = build_backbone("rnnt", OPTIONS, len(Tokenizer.load(place.exp / "tokens")), 2)
    save_weights(place.exp / "A1/backbone.safetensors", module.state_dict())
    describe_backbone(place.exp / "A1", "rnnt", OPTIONS, ["hi", "ta"], place.exp / "tokens", {})
    found = load_backbone(place.exp / "A1")
    freeze(found.module)
    return found


def new(place):
    return Place(place.data, place.dump, place.exp, ["ur"])


def test_tokens_are_chosen_by_what_is_unknown(place, backbone, capsys):
    text = (place.data / "train_ur/text").read_text(encoding="utf-8")
    letters = {c for line in text.splitlines() for c in line.partition(" ")[2]} - {" "}
    for choice, wanted in (("auto", sorted(letters)), ("own", sorted(letters)), ("keep", [])):
        own = make_own(backbone, new(place), "ur", choice)
        assert own.tokens == wanted
        told = capsys.readouterr().out
        assert "ur: new to the backbone" in told and f"{len(wanted)} tokens of its own (tokens: {choice})" in told
    # Tamil is known: by default no tokens of its own.
    assert make_own(backbone, Place(place.data, place.dump, place.exp, ["ta"]), "ta", "auto", report=False).tokens == []


def test_it_starts_where_the_loss_is_lowest(place, backbone):
    """No single language's vector does better on the sample."""
    module = backbone.module
    own = make_own(backbone, new(place), "ur", "keep", report=False)
    batch = _sample(backbone, own.tokens, new(place), "ur")

    @torch.no_grad()
    def loss():
        with routed([own], None):
            enc, lens = module.encode(batch.feats, batch.lens, batch.language_ids)
            return float(module.loss(enc, lens, batch.targets, batch.target_lens).total.mean())

    chosen = loss()
    others = []
    for slots in ([0, 1], [0], [1]):
        own.start_from(module, [], slots)
        others.append(loss())
    assert chosen == pytest.approx(min(others)) and max(others) - min(others) > 1e-4


def save(place, backbone, options=None):
    bank = make_bank("houlsby", options or {"bottleneck": 3}, backbone.module)
    for language in ("hi", "ta"):
        bank.add(language)
    bank.add("ur", own=make_own(backbone, new(place), "ur", "own", report=False))
    torch.manual_seed(0)
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    for language in bank.languages:
        save_pack(place.exp / "A5/packs" / language, bank, language, bank.tensors(language), backbone, {})


def test_the_nearest_pack_is_found_by_the_loss_of_each_alone(place, backbone, capsys):
    """Ta's has not all the sites of the one that is tried before it."""
    options = {"bottleneck": 3, "sites": {"known": "layer", "new": ["layer", "prediction"]}}
    save(place, backbone, options)
    packs = {name: place.exp / "A5/packs" / name for name in ("ur", "ta", "hi")}
    config = AdapterConfig("houlsby", options, TrainingOptions())

    def nearest(*names):
        return nearest_pack(backbone, new(place), "ur", config, "own", [packs[name] for name in names])

    alone = {name: nearest(name)[1] for name in packs}
    assert len({round(loss, 3) for loss in alone.values()}) == 3
    capsys.readouterr()
    name, loss = nearest("ur", "ta", "hi")
    assert loss == pytest.approx(min(alone.values()), rel=1e-6) == alone[name]
    told = capsys.readouterr().err
    assert told.endswith(", ".join(f"{name} {alone[name]:.2f}" for name in packs) + "\n"), told


def test_nothing_changes_where_output_layers_are_the_packs(place, backbone, monkeypatch):
    """Languages have other numbers of tokens there, and a batch as many columns as the language with most."""
    options = {"encoder": "transformer", "encoder_conf": ENCODER, "objective": "none"}
    torch.manual_seed(0)
    Tokenizer(SPECIAL).save(place.exp / "special")
    save_weights(place.exp / "A1/backbone.safetensors", build_backbone("ctc", options, 3, 2).state_dict())
    describe_backbone(place.exp / "A1", "ctc", options, ["hi", "ta"], place.exp / "special", {})
    loaded = load_backbone(place.exp / "A1")
    bank = make_bank("output", {}, loaded.module)
    for language, count in (("hi", 9), ("ta", 4), ("ur", 6)):
        bank.add(language, own=OwnParts(loaded.module, [chr(97 + n) for n in range(count)], vector=False))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    for language in bank.languages:
        save_pack(place.exp / "A5/packs" / language, bank, language, bank.tensors(language), loaded, {})
    monkeypatch.setattr(forgetting, "BATCH_SIZE", 2)
    for old in (["hi", "ta"], ["ta"]):
        part = Place(place.data, place.dump, place.exp, old)
        changes = forgetting.measure(part, Experiment("A5", "", "A1", "backbone", True, {}, None), "ur", "test")
        assert {name: vars(c) for name, c in changes.items()} == dict.fromkeys(
            old, {"utterances": 6, "hypotheses": 0, "logits": 0.0}
        )


def test_nothing_changes_for_the_others(place, backbone, monkeypatch):
    """Measured on real utterances in mixed batches; and a change would be seen."""
    save(place, backbone)
    experiment = Experiment("A5", "", "A1", "backbone", True, {}, None)
    changes = forgetting.measure(place, experiment, "ur", "test")
    assert {name: vars(c) for name, c in changes.items()} == dict.fromkeys(
        ["hi", "ta"], {"utterances": 6, "hypotheses": 0, "logits": 0.0}
    )

    def altered(packs, languages, model):
        bank = load_bank(packs, languages, model)
        if "ur" in languages:
            with torch.no_grad():
                bank.adapters["hi/"]["encoder/layers/1/"].up.bias += 1.0
        return bank

    monkeypatch.setattr(forgetting, "load_bank", altered)
    changes = forgetting.measure(place, experiment, "ur", "test")
    assert changes["hi"].logits > 0.01 and changes["ta"].logits == 0.0
