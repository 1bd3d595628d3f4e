"""Experiments as MMS folders, which transformers loads; and what MMS cannot say."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_exp import make_exp, rewrite
from tiny_pretrained import MMS_TOKENS, audio_of

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.own import OwnParts
from pelasr.backbones.base import build_backbone
from pelasr.backbones.store import describe_backbone, load_backbone
from pelasr.cli.main import main
from pelasr.errors import PelasrError
from pelasr.importers.mms import import_mms
from pelasr.importers.to_mms import export_mms
from pelasr.packs.pack import read_pack, save_pack
from pelasr.storage import save_weights


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    main(["export", "mms", str(made), str(folder)])
    return folder


@pytest.fixture
def exp(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "exp"))


def refused(message: str, exp: Path, wanted: list[str] | None = None) -> None:
    folder = exp.parent / "out"
    with pytest.raises(PelasrError, match=message) as caught:
        export_mms(exp, wanted, folder)
    assert len(str(caught.value).splitlines()) == 1 and not folder.exists()


def add_pack(exp: Path, language: str, method: str = "houlsby", tokens: str = "ab", **options) -> None:
    """A pack as stage 5 leaves it, with fresh adapters and a random output layer."""
    backbone = load_backbone(exp)
    bank = make_bank(method, options, backbone.module)
    bank.add(language, own=OwnParts(backbone.module, list(tokens), vector=True))
    torch.manual_seed(1)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in bank.tensors(language).items()}
    save_pack(exp / "packs" / language, bank, language, tensors, backbone, {"epoch": 3})


def test_transformers_loads_it(mms, exported):
    from transformers import AutoProcessor, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

    model, said = Wav2Vec2ForCTC.from_pretrained(exported, output_loading_info=True)
    assert not any(said.values())
    source = Wav2Vec2ForCTC.from_pretrained(mms).eval()
    x, _ = audio_of("wav2vec2_stable", [9000], beyond=0.0)
    for code in ("hin", "tel", "hin"):
        for each in (model.eval(), source):
            each.load_adapter(code)
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(exported, target_lang=code)
        assert AutoProcessor.from_pretrained(exported, target_lang=code).tokenizer.get_vocab() == tokenizer.get_vocab()
        ids, before = tokenizer.get_vocab(), MMS_TOKENS[code]
        assert list(ids)[:4] == ["<pad>", "<s>", "</s>", "<unk>"] and ids.keys() == before.keys()
        with torch.no_grad():
            found, expected = model(x[..., 0]).logits[0], source(x[..., 0]).logits[0]
        assert torch.equal(found[:, list(ids.values())], expected[:, [before[token] for token in ids]])
    assert (model.config.pad_token_id, model.config.vocab_size) == (0, 7)


def test_there_and_back(made, exported, tmp_path):
    """The same bytes, of the whole and of a part."""
    import_mms(exported, None, tmp_path / "all")
    main(["export", "mms", str(made), "--langs", "te", str(tmp_path / "one")])
    import_mms(tmp_path / "one", None, tmp_path / "te")
    names = ["backbone.safetensors", *(f"packs/{language}/pack.safetensors" for language in ("hi", "te"))]
    assert all((tmp_path / "all" / name).read_bytes() == (made / name).read_bytes() for name in names)
    assert (tmp_path / "te" / names[2]).read_bytes() == (made / names[2]).read_bytes()
    assert json.loads((tmp_path / "one/tokenizer_config.json").read_text())["target_lang"] == "tel"
    assert load_file(tmp_path / "one/model.safetensors")["lm_head.bias"].shape == (6,)
    before = (made / "packs/hi/pack.yaml").read_bytes()
    import_mms(exported, None, made)
    assert (made / "packs/hi/pack.yaml").read_bytes() == before
    assert not [path for path in tmp_path.rglob(".*")]


def test_languages_that_were_fitted_here(exp, tmp_path):
    """By ISO 639-3, or by the key where that is not known to mean it."""
    add_pack(exp, "pa", bottleneck=4, tokens="a|")
    refused(r"packs/pa: its token '\|' is what MMS calls", exp)
    shutil.rmtree(exp / "packs/pa")
    add_pack(exp, "pa", bottleneck=4)
    add_pack(exp, "rm_vallader", bottleneck=4)
    export_mms(exp, ["pa", "rm_vallader"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("adapter.*")) == [
        "adapter.pan.safetensors",
        "adapter.rm_vallader.safetensors",
    ]
    assert json.loads((tmp_path / "out/vocab.json").read_text())["pan"] == {
        **{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3},
        **{"a": 4, "b": 5},
    }
    import_mms(tmp_path / "out", ["pan"], tmp_path / "back")
    name = "packs/pa/pack.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (exp / name).read_bytes()
    assert read_pack(tmp_path / "back/packs/pa").own_tokens == ["a", "b"]


def test_keys_with_a_script_or_a_variant(exp, tmp_path):
    """The codes that they get are read as the same keys again, and the keys name them."""
    codes = {"az.Cyrl": "az-Cyrl", "zh.TW": "zh-TW", "dnj_blowowest": "dnj-dialect_blowowest"}
    for key in codes:
        add_pack(exp, key, bottleneck=4)
    export_mms(exp, list(codes), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("adapter.*")} == {
        f"adapter.{code}.safetensors" for code in codes.values()
    }
    import_mms(tmp_path / "out", list(codes), tmp_path / "back")
    for key in codes:
        name = f"packs/{key}/pack.safetensors"
        assert (tmp_path / "back" / name).read_bytes() == (exp / name).read_bytes()


def test_masks_are_kept(mms, tmp_path):
    """As the model was trained with, into the experiment and out of it."""
    source = Path(shutil.copytree(mms, tmp_path / "model"))
    said = json.loads((source / "config.json").read_text()) | {"mask_time_prob": 0.075, "mask_time_length": 8}
    (source / "config.json").write_text(json.dumps(said))
    import_mms(source, ["hin"], tmp_path / "exp")
    masks = {"mask_time_prob": 0.075, "mask_time_length": 8}
    assert load_backbone(tmp_path / "exp").description.options["masks"] == masks
    export_mms(tmp_path / "exp", None, tmp_path / "out")
    found = json.loads((tmp_path / "out/config.json").read_text())
    assert {key: found[key] for key in masks} == masks


def test_what_mms_is_not(exp, tmp_path):
    refused("no pack of 'ta'; known: hi, te", exp, ["ta"])
    add_pack(exp, "pa", bottleneck=5)
    refused(r"adapters of several widths \(4 of hi, 5 of pa\), where MMS has one", exp)
    shutil.rmtree(exp / "packs/pa")
    add_pack(exp, "pa", method="output")
    refused("packs/pa: its method is output, MMS's is houlsby", exp)
    shutil.rmtree(exp / "packs/pa")
    add_pack(exp, "pa", bottleneck=4, sites=["ffn"])
    refused("packs/pa: its adapters are not after every layer", exp)
    shutil.rmtree(exp / "packs/pa")
    add_pack(exp, "pa", bottleneck=4)
    rewrite(exp / "packs/pa", training={"code": "hin"})
    refused("hi and pa are both hin to MMS; leave one out", exp)
    rewrite(exp / "packs/pa", training={"code": "../hin"})
    refused("packs/pa/pack.yaml: training: code|packs/pa/pack.yaml: code: expected a model's code", exp)
    shutil.rmtree(exp / "packs")
    refused("no packs, without which there is no MMS", exp)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": "sum"}, "see the sum of all layers, MMS's see the last one"),
        ({"objective": "ctc"}, "share an output layer, of MMS each has one of its own"),
        ({"encoder": "hubert"}, "its encoder is hubert with do_stable_layer_norm, MMS's is wav2vec2"),
        ({"encoder_conf": {"do_stable_layer_norm": False}}, "wav2vec2 without do_stable_layer_norm, MMS's"),
    ],
)
def test_other_backbones(exp, change, message):
    said = load_backbone(exp).description
    conf = {**said.options["encoder_conf"], **change.get("encoder_conf", {})}
    options = {**said.options, **change, "encoder_conf": conf}
    save_weights(exp / "backbone.safetensors", build_backbone("ctc", options, 3, 2).state_dict())
    describe_backbone(exp, "ctc", options, said.languages, exp / "tokens", {})
    refused(message, exp)


def test_other_families(tmp_path):
    refused("its encoder is rnnt's own without", make_exp(tmp_path) / "A5")
