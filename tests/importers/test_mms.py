"""MMS folders: as experiments, with transformers' numbers, and back to the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny_exp import retensor, rewrite
from tiny_pretrained import MMS_TOKENS, audio_of
from tiny_speech import RATE, noise

import pelasr
from pelasr.backbones.store import load_backbone
from pelasr.cli.main import main
from pelasr.errors import PelasrError
from pelasr.importers.mms import import_mms
from pelasr.importers.mms_folder import OFF
from pelasr.importers.to_mms import export_mms
from pelasr.packs.pack import load_bank, read_pack
from pelasr.search.ctc import ctc_best_path

CODES = {"hi": "hin", "te": "tel"}
THEIRS = {"<blank>": "<pad>", "<sos/eos>": "</s>", "<space>": "|"}  # what MMS calls our tokens


@pytest.fixture
def copied(mms, tmp_path) -> Path:
    return Path(shutil.copytree(mms, tmp_path / "model"))


@pytest.fixture
def exp(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "exp"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    names = ["backbone.safetensors", *(f"packs/{language}/pack.safetensors" for language in CODES)]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def refused(message: str, *given, do=import_mms) -> None:
    with pytest.raises(PelasrError, match=message) as caught:
        do(*given)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def theirs(mms):
    """transformers' logits of an utterance in a language, alone, and its greedy text."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

    def found(code: str, x: torch.Tensor, folder: Path = mms) -> tuple[torch.Tensor, str]:
        model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
        model.load_adapter(code)
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder, target_lang=code)
        with torch.no_grad():
            logits = model(x[None]).logits[0]
        return logits, tokenizer.decode(logits.argmax(-1))

    return found


@pytest.mark.parametrize("batch", [["hi", "te"], ["te", "hi"], ["hi"], ["te"], ["te", "te"]])
def test_logits_are_those_of_transformers(made, theirs, batch):
    """Of each language by itself, and of both in one batch, with lengths, vocabularies and blanks that differ."""
    backbone = load_backbone(made)
    bank = load_bank(made / "packs", batch if len(set(batch)) > 1 else batch[:1], backbone)
    x, lens = audio_of("wav2vec2_stable", [16000, 12000][: len(batch)], beyond=0.0)
    with torch.no_grad(), bank.route(batch):
        enc, frames = backbone.module.encode(x, lens)
        logits = backbone.module.logits(enc, frames, lens[:, None], lens)
    paths = ctc_best_path(logits, frames)
    for row, language in enumerate(batch):
        expected, text = theirs(CODES[language], x[row, : lens[row], 0])
        tokens = backbone.tokenizer.tokens + bank.own_tokens(language)
        ids = MMS_TOKENS[CODES[language]]
        order = [ids[THEIRS.get(token, token)] for token in tokens]
        assert sorted(order) == list(range(len(ids)))
        torch.testing.assert_close(logits[row, : frames[row], : len(tokens)], expected[:, order], atol=1e-5, rtol=0)
        assert (logits[row, :, len(tokens) :] == -torch.inf).all()
        spoken = backbone.tokenizer.with_own(bank.own_tokens(language)).decode(paths[row].tokens)
        for token in ("<s>", "</s>"):
            text = text.replace(token, "")
        assert spoken.strip() == text.replace("<unk>", "⁇").strip()


def test_each_language_has_its_own_adapter(made, theirs):
    """Which transformers' loading had got wrong without a word: one language's in the place of another's."""
    x, _ = audio_of("wav2vec2_stable", [9000], beyond=0.0)
    blanks = {code: theirs(code, x[0, :, 0])[0][:, MMS_TOKENS[code]["<pad>"]] for code in CODES.values()}
    assert (blanks["hin"] - blanks["tel"]).abs().max() > 0.01
    packs = {language: load_file(made / f"packs/{language}/pack.safetensors") for language in CODES}
    assert not any(torch.equal(packs["hi"][name], packs["te"][name]) for name in packs["hi"] if "/down." in name)


def test_what_an_experiment_of_it_says(made):
    pack = read_pack(made / "packs/te")
    assert pack.own_tokens == ["<s>", "<space>", "క"] and not pack.own_vector
    assert (pack.adapter, pack.adapter_conf, pack.training["code"]) == ("houlsby", {"bottleneck": 4}, "tel")
    assert pack.parameters == 3 * (2 * 32 * 4 + 4 + 3 * 32) + 6 * 33
    assert pack.training["imported"]["from"] == "mms"
    assert (made / "model.yaml").read_text() == "backbone: .\nweights: backbone\n"
    assert json.loads((made / "facts.json").read_text())["total_parameters"] == 28328
    assert load_backbone(made).languages == ["hi", "te"]


def test_it_transcribes(made, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(1.0), RATE)
    main(["transcribe", "--model", str(made), "--lang", "hi", str(tmp_path / "a.wav")])
    text = capsys.readouterr().out
    model = pelasr.load(made)
    assert model.languages == ["hi", "te"]
    spoken = model.decode([tmp_path / "a.wav"], "hi")[0]
    assert spoken and text == f"{tmp_path}/a.wav {spoken}\n"
    main(["packs", "list", str(made)])
    main(["packs", "verify", "--model", str(made), str(made / "packs/hi"), str(made / "packs/te")])
    assert capsys.readouterr().out.count("ok: ") == 2


def test_the_same_again_does_nothing(mms, exp, capsys):
    before = contents(exp)
    import_mms(mms, None, exp)
    assert contents(exp) == before and "2 packs (hi te) there already" in "".join(capsys.readouterr())


def test_languages_are_added(mms, made, tmp_path):
    """To what was imported before, by any code of the language."""
    exp = tmp_path / "exp"
    import_mms(mms, ["te"], exp)
    assert [path.name for path in (exp / "packs").iterdir()] == ["te"]
    backbone = (exp / "backbone.yaml").read_bytes()
    import_mms(mms, ["hi"], exp)
    assert (exp / "backbone.yaml").read_bytes() == backbone and same_weights(exp, made)
    assert not [path for path in tmp_path.rglob(".*")]


def test_another_model_is_refused(copied, exp):
    tensors = load_file(copied / "model.safetensors")
    tensors["wav2vec2.encoder.layer_norm.bias"] += 1
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    before = contents(exp)
    refused(r"exp: its backbone is not that of \S+model \(\w+, with \w+\); import", copied, ["hin"], exp)
    assert contents(exp) == before


def test_another_pack_is_not_overwritten(mms, exp):
    retrained = exp / "packs/hi"
    shutil.rmtree(retrained)
    import_mms(mms, ["hin"], exp)
    retensor(retrained, lambda tensors: tensors["ctc/bias"].add_(1))
    before = contents(exp)
    refused("packs/hi: there is another pack of 'hi'; delete it first", mms, None, exp)
    shutil.rmtree(exp / "packs/te")
    rewrite(retrained, adapter="output", adapter_conf={})
    refused("packs/hi: made by output {}, not houlsby {'bottleneck': 4}; import", mms, ["te"], exp)
    assert set(before) - set(contents(exp)) == {"packs/te/pack.yaml", "packs/te/pack.safetensors"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["hin", "xyz"], "no adapter of 'xyz'; known: hin, tel"),
        (["teluga"], "no adapter of 'teluga'; did you mean 'tel'"),
        (["hin", "hi"], "hin and hin are both hi; name one"),
        (["../hin"], r"no adapter of '\.\./hin'"),
    ],
)
def test_languages_that_there_are_not(mms, tmp_path, wanted, message):
    refused(message, mms, wanted, tmp_path / "exp")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(mms, tmp_path):
    (tmp_path / "notes").write_text("mine")
    refused("exists already; delete it, or name another folder", mms, None, tmp_path)


VOCAB = MMS_TOKENS["tel"]
VOCABULARIES = [
    ([], "vocab.json: expected a dict, found"),
    (VOCAB, "vocab.json: want a vocabulary for each language"),
    ({"hin": MMS_TOKENS["hin"]}, "vocab.json: tel: no vocabulary of this language"),
    ({"hin": MMS_TOKENS["hin"], "tel": [1]}, r"vocab.json: tel: expected ids by tokens, found \[1\]"),
    ({"tel": {**VOCAB, "|": 7}}, "vocab.json: tel: 6 tokens, but none has the id 0"),
    ({"tel": {**VOCAB, "|": 1}}, r"vocab.json: tel: '\|' and 'క' have the same id 1"),
    ({"tel": {**VOCAB, "|": -1}}, r"vocab.json: tel: the id of '\|' is -1, no number from 0 on"),
    ({"tel": {**VOCAB, "|": True}}, r"the id of '\|' is True"),
    ({"tel": {**VOCAB, "|": 10**30}}, r"the id of '\|' is 10"),
    ({"tel": {**VOCAB, "ఖ": 6}}, "vocab.json: tel: 7 tokens, but the adapter has an output layer for 6"),
    ({"tel": {name: n for name, n in VOCAB.items() if n}}, "5 tokens, but the adapter has an output layer for 6"),
    ({"tel": {"blank" if name == "<pad>" else name: n for name, n in VOCAB.items()}}, "tel: no '<pad>'"),
    (
        {"tel": {"<lang:de>" if name == "క" else name: n for name, n in VOCAB.items()}},
        "'<lang:de>' is no token of text",
    ),
    ({"tel": {"<space>" if name == "క" else name: n for name, n in VOCAB.items()}}, "'<space>' is no token of text"),
    ({"tel": {"a b" if name == "క" else name: n for name, n in VOCAB.items()}}, "'a b' is no token of text"),
    (
        {"tel": {{"క": "<U+200B>", "<unk>": "\u200b"}.get(name, name): n for name, n in VOCAB.items()}},
        "vocab.json: tel: two tokens are <U\\+200B>",
    ),
    ({"tel": {"" if name == "క" else name: n for name, n in VOCAB.items()}}, "'' is no token of text"),
]


@pytest.mark.parametrize(("vocabularies", "message"), VOCABULARIES)
def test_hostile_vocabularies(copied, tmp_path, vocabularies, message):
    (copied / "vocab.json").write_text(json.dumps(vocabularies))
    refused(message, copied, ["tel"], tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


LINEAR = "wav2vec2.encoder.layers.1.adapter_layer.linear_1.weight"


def _less(tensors):
    del tensors[LINEAR]


def _nan(tensors):
    tensors[LINEAR][0, 0] = float("nan")


ADAPTERS = {
    f"tensor {LINEAR} is missing": _less,
    r"tensor \.\./x is unexpected": lambda tensors: tensors.update({"../x": torch.ones(1)}),
    rf"tensor {LINEAR} is \(5, 32\) torch.float32, expected \(4, 32\)": lambda tensors: tensors.update(
        {LINEAR: torch.ones(5, 32)}
    ),
    f"tensor {LINEAR} holds NaN": _nan,
    "torch.int64, expected": lambda tensors: tensors.update({LINEAR: tensors[LINEAR].long()}),
    "tensor lm_head.bias is missing": lambda tensors: tensors.pop("lm_head.bias"),
    "damaged: ": lambda tensors: tensors.update(more=torch.zeros(1 << 19)),
}


@pytest.mark.parametrize("message", ADAPTERS)
def test_hostile_adapters(copied, tmp_path, message):
    path = copied / "adapter.tel.safetensors"
    tensors = load_file(path)
    ADAPTERS[message](tensors)
    save_file(tensors, path)
    refused(f"adapter.tel.safetensors: .*{message}", copied, None, tmp_path / "exp")
    assert not (tmp_path / "exp").exists()


def test_files_that_are_none(copied, tmp_path):
    path = copied / "adapter.tel.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-50])
    refused("adapter.tel.safetensors: damaged", copied, None, tmp_path / "exp")
    torch.save(load_file(copied / "adapter.hin.safetensors"), path)
    refused("adapter.tel.safetensors: damaged", copied, None, tmp_path / "exp")
    path.rename(path.with_suffix(".bin"))
    refused("adapter.tel.bin: a pickle, which can run anything, is not read; convert", copied, None, tmp_path / "exp")
    import_mms(copied, ["hin"], tmp_path / "exp")
    (copied / "config.json").write_text((copied / "config.json").read_text().replace('dim": 4', 'dim": null'))
    refused("config.json: adapter_attn_dim: None: no width", copied, ["hin"], tmp_path / "other")


def test_half_precision_and_other_names(copied, made, tmp_path):
    """As who fine-tunes an adapter by transformers' recipe leaves them: names of its own, tokens added at the end."""
    ids = {"|": 0, "క": 1, "[UNK]": 2, "[PAD]": 3}
    (copied / "vocab.json").write_text(json.dumps({"tel": ids}))
    said = {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}}
    said["added_tokens_decoder"] = {"4": {"content": "<s>"}, "5": {"content": "</s>"}, "3": {"content": "[PAD]"}}
    (copied / "tokenizer_config.json").write_text(json.dumps(said))
    tensors = load_file(copied / "adapter.tel.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, copied / "adapter.tel.safetensors")
    import_mms(copied, ["tel"], tmp_path / "exp")
    assert read_pack(tmp_path / "exp/packs/te").own_tokens == ["<s>", "<space>", "క"]
    found = load_file(tmp_path / "exp/packs/te/pack.safetensors")["ctc/weight"]
    assert torch.equal(found, tensors["lm_head.weight"].half().float()[[3, 2, 5, 4, 0, 1]])


def test_tokenizers_that_lack_a_token_or_have_any_ids(copied, made, tmp_path):
    """As transformers writes one without a token; and what it does not write."""
    said = {"bos_token": None, "added_tokens_decoder": {"9" * 5000: {"content": "x"}, "२": {"content": "y"}}}
    (copied / "tokenizer_config.json").write_text(json.dumps(said))
    import_mms(copied, ["tel"], tmp_path / "exp")
    name = "packs/te/pack.safetensors"
    assert (tmp_path / "exp" / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize("token", ["\ud800", "", 7, {"content": ["<pad>"]}])
def test_special_tokens_that_are_none(copied, tmp_path, token):
    (copied / "vocab.json").write_text(json.dumps({"tel": {str(token): 0, **VOCAB, "|": 6}}))
    (copied / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    refused("tokenizer_config.json: pad_token: expected a token, found", copied, ["tel"], tmp_path / "exp")


def test_a_code_with_letters_beyond_ascii(copied, tmp_path):
    code = "cac-dialect_sansebastiáncoatán"
    (copied / "adapter.tel.safetensors").rename(copied / f"adapter.{code}.safetensors")
    (copied / "vocab.json").write_text(json.dumps({code: MMS_TOKENS["tel"], "hin": MMS_TOKENS["hin"]}))
    import_mms(copied, None, tmp_path / "exp")
    assert read_pack(tmp_path / "exp/packs/cac_sansebastiancoatan").training["code"] == code
    export_mms(tmp_path / "exp", None, tmp_path / "out")
    assert (tmp_path / f"out/adapter.{code}.safetensors").exists()


def test_tokens_of_several_letters_and_of_none(copied, tmp_path):
    """A vocabulary without <unk>, </s> and <s>, with a digraph and what no text shows."""
    names = {"<s>": "ch", "</s>": "\u200b", "<unk>": "c"}
    ids = {names.get(token, token): number for token, number in VOCAB.items()}
    (copied / "vocab.json").write_text(json.dumps({"tel": ids}))
    import_mms(copied, ["tel"], tmp_path / "exp")
    pack = read_pack(tmp_path / "exp/packs/te")
    assert pack.own_tokens == ["<space>", "క", "ch", "<U+200B>", "c"]
    tensors = load_file(tmp_path / "exp/packs/te/pack.safetensors")
    assert tensors["ctc/bias"][1:3].tolist() == [OFF, OFF] and not tensors["ctc/weight"][1:3].any()
    tokenizer = load_backbone(tmp_path / "exp").tokenizer.with_own(pack.own_tokens)
    assert tokenizer.encode("c chక h") == [7, 3, 5, 4, 3, 1] and tokenizer.unknown("ch h") == ["h"]
    assert tokenizer.decode([5, 6, 3, 7]) == "ch c"
    export_mms(tmp_path / "exp", None, tmp_path / "out")
    import_mms(tmp_path / "out", None, tmp_path / "again")
    for name in ("backbone.safetensors", "packs/te/pack.safetensors"):
        assert (tmp_path / "exp" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert read_pack(tmp_path / "again/packs/te").own_tokens == pack.own_tokens
