"""Packs: a round trip is exact, and every kind of tampering is refused in one line that says what is wrong."""

import pytest
import torch
from tiny_exp import OWN, make_exp, retensor, rewrite
from torch import nn

from pelasr.adapters.bank import Bank
from pelasr.adapters.finetune import make_bank as make_any_bank
from pelasr.adapters.own import OwnParts
from pelasr.backbones.store import LoadedBackbone, load_backbone
from pelasr.data.tokenizer import Tokenizer, train_graphemes
from pelasr.errors import PelasrError
from pelasr.files import sha256_file
from pelasr.packs.pack import bank_for, identical, load_bank, load_pack, open_pack, read_pack, save_pack
from pelasr.storage import load_weights, state_sha256

NAME = "encoder.layers.1/down.weight"


@pytest.fixture
def backbone(make_rnnt):
    module = make_rnnt()
    tokenizer = Tokenizer(train_graphemes(["abcd"]))
    return LoadedBackbone(module, tokenizer, ["hi", "ur", "pa"], state_sha256(module.state_dict()), {})


def make_bank(backbone, languages=("hi", "ur"), **options):
    torch.manual_seed(1)
    bank = Bank("houlsby", {"bottleneck": 4, **options}, backbone.module)
    for language in languages:
        bank.add(language)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    return bank


def save(folder, backbone, bank, **changed):
    for language in bank.languages:
        tensors = {name: tensor.detach().clone() for name, tensor in bank.tensors(language).items()} | changed
        save_pack(folder / language, bank, language, tensors, backbone, {"epoch": 4, "dev": {"wer": 12.5}})


@pytest.fixture
def packs(tmp_path, backbone):
    save(tmp_path / "packs", backbone, make_bank(backbone))
    return tmp_path / "packs"


def refused(packs, backbone, message, languages=("hi",)):
    with pytest.raises(PelasrError, match=message) as caught:
        load_bank(packs, list(languages), backbone)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_round_trip_is_exact(packs, backbone, make_batch):
    bank, batch = make_bank(backbone), make_batch(["hi", "ur", "hi"])
    loaded = load_bank(packs, ["ur", "hi"], backbone)
    assert loaded.languages == ["ur", "hi"] and not any(module.training for module in loaded.modules())
    for language in ("hi", "ur"):
        found, wanted = loaded.tensors(language), bank.tensors(language)
        assert list(found) == list(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with loaded.route(batch.languages):
        through_packs, _ = backbone.module.encode(batch.feats, batch.lens, batch.language_ids)
    plain, _ = backbone.module.encode(batch.feats, batch.lens, batch.language_ids)
    with bank.route(batch.languages):
        wanted, _ = backbone.module.encode(batch.feats, batch.lens, batch.language_ids)
    assert torch.equal(through_packs, wanted) and not torch.equal(plain, wanted)


def test_what_a_pack_says(packs, backbone):
    description = read_pack(packs / "hi")
    tensors = load_weights(packs / "hi" / "pack.safetensors")
    assert description.format == 2 and description.language == "hi"
    assert description.own_tokens == [] and description.own_vector is False
    assert description.safetensors_sha256 == sha256_file(packs / "hi" / "pack.safetensors")
    assert description.adapter == "houlsby" and description.adapter_conf == {"bottleneck": 4}
    assert description.sites == {f"encoder.layers.{n}": 6 for n in range(3)}
    assert description.backbone_sha256 == state_sha256(backbone.module.state_dict())
    assert description.tokens_sha256 == backbone.tokenizer.sha256
    assert description.parameters == sum(t.numel() for t in tensors.values()) == 3 * (2 * 6 * 4 + 4 + 3 * 6)
    assert description.training == {"epoch": 4, "dev": {"wer": 12.5}}
    assert not any(word in name for name in tensors for word in ("hi", "houlsby"))
    assert {file.name for file in (packs / "hi").iterdir()} == {"pack.safetensors", "pack.yaml"}


def test_same_pack_same_bytes(packs, backbone, tmp_path):
    save(tmp_path / "again", backbone, make_bank(backbone))
    for name in ("pack.safetensors", "pack.yaml"):
        assert (tmp_path / "again/hi" / name).read_bytes() == (packs / "hi" / name).read_bytes()


def test_packs_are_independent(packs, backbone):
    """One language's folder is all that its results rest on."""
    for file in (packs / "ur").iterdir():
        file.write_bytes(b"damaged")
    load_bank(packs, ["hi"], backbone)
    refused(packs, backbone, "ur/pack.yaml", languages=["hi", "ur"])


def test_a_language_without_a_pack(packs, backbone):
    text = refused(packs, backbone, "no pack of 'ta'; known: hi, ur", languages=["hi", "ta"])
    assert str(packs / "ta") in text
    refused(packs, backbone, "no languages asked for", languages=[])


def test_other_backbone(packs, backbone):
    backbone.sha256 = "0" * 64
    text = refused(packs, backbone, "hi/pack.yaml: backbone_sha256 is .*, this model's is 000000000000")
    assert "fit it again with the method, backbone and tokens" in text


def test_other_tokens(packs, backbone):
    backbone.tokenizer = Tokenizer(train_graphemes(["abce"]))
    refused(packs, backbone, "hi/pack.yaml: tokens_sha256 is")


def test_other_sites(packs, backbone, make_rnnt):
    conf = {"num_layers": 2, "hidden_size": 8, "output_size": 6, "reduction_layer": 1}
    backbone.module = make_rnnt(encoder_conf=conf)
    refused(packs, backbone, "hi/pack.yaml: sites is 6 at encoder.layers.2, this model's is without encoder.layers.2;")


def test_what_differs_of_long_options_is_named(packs, backbone):
    long = {"bottleneck": 4, "sites": ["layer"] * 20}
    rewrite(packs / "ur", adapter_conf=long)
    refused(packs, backbone, r"ur/pack.yaml: adapter_conf is \['layer', .* at sites, this", languages=["hi", "ur"])


def test_packs_of_different_making(packs, backbone):
    save(packs, backbone, make_bank(backbone, ["ur"], bottleneck=5))
    refused(packs, backbone, "ur/pack.yaml: adapter_conf is .*this model's is", languages=["hi", "ur"])


@pytest.mark.parametrize(
    ("key", "value"), [("parameters", 5), ("adapter_conf", {"bottleneck": 5}), ("sites", {"encoder.layers.0": 6})]
)
def test_packs_that_contradict_themselves(packs, backbone, key, value):
    rewrite(packs / "ur", **{key: value})
    refused(packs, backbone, "ur/pack.yaml: (parameters|sites) is .*this model's is", languages=["hi", "ur"])


def test_other_language(packs, backbone):
    (packs / "hi").rename(packs / "pa")
    refused(packs, backbone, "pa: holds 'hi', not 'pa'; packs in .*: pa, ur", languages=["pa"])


@pytest.mark.parametrize("version", [0, 1, 3, "2"])
def test_other_format(packs, backbone, version):
    rewrite(packs / "hi", format=version)
    refused(packs, backbone, f"hi/pack.yaml: format {version}, this version reads 2")


def test_other_method(packs, backbone):
    rewrite(packs / "hi", adapter="hulsby")
    refused(packs, backbone, "no method 'hulsby'; did you mean 'houlsby'")


@pytest.mark.parametrize("key", ["format", "language", "adapter_conf", "safetensors_sha256", "own_tokens", "training"])
def test_a_key_is_missing(packs, backbone, key):
    rewrite(packs / "hi", **{key: None})
    text = refused(packs, backbone, f"hi/pack.yaml.*missing.*{key}|hi/pack.yaml.*{key}.*missing")
    assert "unknown" not in text


def test_a_key_too_many(packs, backbone):
    rewrite(packs / "hi", langauge="hi")
    refused(packs, backbone, "hi/pack.yaml: unknown key 'langauge'; did you mean 'language'")


def test_half_a_description(packs, backbone):
    path = packs / "hi" / "pack.yaml"
    path.write_text(path.read_text()[:150])
    refused(packs, backbone, "hi/pack.yaml")
    path.write_text(path.read_text().replace("x", "y"))
    refused(packs, backbone, "hi/pack.yaml: altered, incomplete or of another version")


def test_renamed_missing_and_unexpected_tensors(packs, backbone):
    retensor(packs / "hi", lambda tensors: tensors.update(surplus=torch.ones(2)))
    refused(packs, backbone, "pack.safetensors: tensor surplus is unexpected")
    retensor(packs / "hi", lambda tensors: tensors.pop("surplus"))
    load_bank(packs, ["hi"], backbone)
    retensor(packs / "hi", lambda tensors: tensors.update({f"{NAME}s": tensors.pop(NAME)}))
    refused(packs, backbone, f"tensor {NAME} is missing")
    retensor(packs / "hi", lambda tensors: tensors.pop(f"{NAME}s"))
    refused(packs, backbone, f"tensor {NAME} is missing")


def test_other_shape_and_type(packs, backbone):
    retensor(packs / "hi", lambda tensors: tensors.update({NAME: torch.ones(6, 4)}))
    refused(packs, backbone, rf"tensor {NAME} is \(6, 4\) torch.float32, expected \(4, 6\)")
    retensor(packs / "hi", lambda tensors: tensors.update({NAME: torch.ones(4, 6).half()}))
    refused(packs, backbone, rf"tensor {NAME} is \(4, 6\) torch.float16, expected")


def test_swapped_values_of_the_same_shape(packs, backbone):
    def swap(tensors):
        tensors[NAME], tensors[NAME.replace("1", "2")] = tensors[NAME.replace("1", "2")], tensors[NAME]

    retensor(packs / "hi", swap, honest=False)
    refused(packs, backbone, "hi/pack.safetensors: not the file that was described: incomplete or altered")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number(packs, backbone, value):
    retensor(packs / "hi", lambda tensors: tensors[NAME].view(-1)[3:4].fill_(value))
    refused(packs, backbone, f"tensor {NAME} holds NaN or infinity")


def test_one_altered_bit(packs, backbone):
    path = packs / "hi" / "pack.safetensors"
    content = path.read_bytes()
    for position in (len(content) - 1, len(content) - 200):
        altered = bytearray(content)
        altered[position] ^= 1
        path.write_bytes(altered)
        refused(packs, backbone, "hi/pack.safetensors: not the file that was described")
    altered = bytearray(content)
    altered[20] ^= 1  # in the header
    path.write_bytes(altered)
    refused(packs, backbone, "hi/pack.safetensors")


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated(packs, backbone, size):
    path = packs / "hi" / "pack.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(packs, backbone, "hi/pack.safetensors: not the file that was described")
    rewrite(packs / "hi", safetensors_sha256=sha256_file(path))
    refused(packs, backbone, "hi/pack.safetensors: damaged")


def test_absent_tensors_are_not_blamed_on_the_backbone(packs, backbone):
    (packs / "hi" / "pack.safetensors").unlink()
    text = refused(packs, backbone, "hi/pack.safetensors: no such file")
    assert "stage 4" not in text and "train the backbone" not in text


def test_own_parts_round_trip(tmp_path, make_batch):
    exp = make_exp(tmp_path)
    backbone = load_backbone(exp / "A1")
    bank = load_bank(exp / "A5/packs", ["hi", "uk"], backbone)
    assert bank.own_tokens("uk") == OWN["uk"] and bank.own_of("hi") is None
    saved = load_weights(exp / "A5/packs/uk/pack.safetensors")
    live = bank.tensors("uk")
    assert set(live) == set(saved) and all(torch.equal(live[name], saved[name]) for name in saved)
    assert {"language_vector/vector", "prediction.embed/weight", "joint.lin_out/bias"} <= set(saved)
    assert not any(parameter.is_meta for parameter in bank.parameters())


@pytest.mark.parametrize("method", ["houlsby", "lora", "bitfit", "full", "decoder"])
def test_every_method_has_packs(tmp_path, make_st, make_rnnt, method):
    copies = method in ("full", "decoder")
    module = make_st() if copies else make_rnnt()
    tokenizer = Tokenizer(train_graphemes(["abcd"]))
    backbone = LoadedBackbone(module, tokenizer, ["hi"], state_sha256(module.state_dict()), {})
    options = {"sites": "joint"} if method in ("lora", "bitfit") else {}
    bank = make_any_bank(method, options, module)
    bank.add("hi")
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    save_pack(tmp_path / "hi", bank, "hi", bank.tensors("hi"), backbone, {})
    loaded = load_bank(tmp_path, ["hi"], backbone)
    for name, tensor in bank.tensors("hi").items():
        assert torch.equal(loaded.tensors("hi")[name], tensor)


def test_a_language_twice(packs, backbone):
    bank = load_bank(packs, ["hi"], backbone)
    with pytest.raises(PelasrError, match="language 'hi' has adapters already"):
        load_pack(open_pack(packs / "hi", backbone), bank, backbone)
    with pytest.raises(PelasrError, match="no adapters for language 'ur'; .*known: hi"), bank.route(["ur"]):
        pass


def test_what_there_is_for_this_backbone_is_listed(packs, backbone, make_rnnt):
    other = make_rnnt(seed=1)
    second = LoadedBackbone(other, backbone.tokenizer, backbone.languages, state_sha256(other.state_dict()), {})
    save(packs, second, make_bank(second, languages=["pa"]))
    refused(packs, backbone, "pa/pack.yaml: backbone_sha256 is .*that fit this model: hi, ur", languages=["pa"])
    refused(packs, second, "hi/pack.yaml: backbone_sha256 is .*that fit this model: pa")


def test_identical_languages(backbone):
    bank = make_bank(backbone, languages=["hi", "ur", "pa"])
    assert identical({name: bank.tensors(name) for name in bank.languages}) == []
    with torch.no_grad():
        for name, tensor in bank.tensors("pa").items():
            tensor.copy_(bank.tensors("hi")[name])
    assert identical({name: bank.tensors(name) for name in bank.languages}) == [("hi", "pa")]
    bank.add("uk", own=OwnParts(backbone.module, ["ї"], vector=True))
    bank.add("be", own=OwnParts(backbone.module, ["ї"], vector=True))
    with torch.no_grad():
        for name, tensor in bank.tensors("be").items():
            tensor.copy_(bank.tensors("uk")[name])
        assert identical({name: bank.tensors(name) for name in bank.languages}) == [("hi", "pa"), ("uk", "be")]
        bank.tensors("be")["language_vector/vector"][0] += 1e-7
    assert identical({name: bank.tensors(name) for name in bank.languages}) == [("hi", "pa")]


def test_a_language_that_the_backbone_cannot_tell(packs, backbone):
    """Without a vector of its own a new language would be decoded with another's."""
    rewrite(packs / "hi", language="ta")
    refused(packs, backbone, r"'ta' is new to the backbone \(hi ur pa\) and has no vector", languages=["hi"])


def test_what_could_not_be_loaded_is_not_saved(packs, backbone, tmp_path):
    bank = make_bank(backbone, languages=["a-b-c", "ta"])
    for language, message in (("a-b-c", "language: expected a language such as hi"), ("ta", "has no vector")):
        with pytest.raises(PelasrError, match=message):
            save_pack(tmp_path / "new", bank, language, bank.tensors(language), backbone, {})
    assert not (tmp_path / "new").exists()


def test_an_open_pack(packs, backbone):
    pack = open_pack(packs / "hi", backbone)
    assert pack.description == read_pack(packs / "hi") and len(pack.tensors) == 18
    assert bank_for(pack, backbone).languages == []
