"""Folders of pretrained encoders: what they say, what is loaded of them, and which are refused."""

import json
import shlex
import shutil
import subprocess

import pytest
import torch
from hostile import refusal
from safetensors.torch import load_file, save_file
from tiny_pretrained import (
    TINY,
    audio_of,
    make_model,
    make_ours,
    oracle,
    same_as_theirs,
    save_mms,
    save_model,
    states_of,
    their_states,
)

from pelasr.backbones.pretrained import file_names, load_pretrained, pretrained_sha256, read_pretrained, weight_files
from pelasr.errors import PelasrError
from pelasr.nn.speech_encoder import make_encoder, make_frontend

KIND = "wav2vec2_stable"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(KIND, tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a folder, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "model")


def rewrite(path, **changes):
    """A JSON file with some keys changed, those that are `...` taken out."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: each for key, each in value.items() if each is not ...}))


def rename(folder, change, **more):
    """The tensors of a folder under other names, and more of them."""
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()} | more, path)


def loaded(folder, kind=KIND):
    """Ours with the weights of a folder, and what was left out of it."""
    module = make_ours(kind)
    return module, load_pretrained(read_pretrained(folder), module)


def assert_same(module, kind=KIND, **tolerance):
    wanted = same_as_theirs(kind).state_dict()
    assert module.state_dict().keys() == wanted.keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, **(tolerance or {"atol": 0}))


@pytest.mark.parametrize("kind", TINY)
def test_a_folder_is_read_as_it_was_saved(kind, tmp_path):
    save_model(kind, tmp_path)
    pretrained = read_pretrained(tmp_path)
    encoder, conf = TINY[kind]
    assert (pretrained.encoder, pretrained.mask_conf, pretrained.folder) == (encoder, {}, tmp_path)
    assert pretrained.encoder_conf == conf
    assert pretrained.normalise == kind.endswith("stable")
    module, left_out = loaded(tmp_path, kind)
    assert not left_out
    assert_same(module, kind)
    state = oracle(kind).state_dict()
    assert {theirs for theirs in file_names(module).values()} == state.keys()


def test_masks_and_preprocessor(folder):
    rewrite(folder / "config.json", mask_time_prob=0.65, mask_time_min_masks=2, mask_feature_prob=0.1)
    assert read_pretrained(folder).mask_conf == {"mask_time_prob": 0.65, "mask_feature_prob": 0.1}
    rewrite(folder / "config.json", apply_spec_augment=False)
    assert read_pretrained(folder).mask_conf == {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    rewrite(folder / "preprocessor_config.json", do_normalize=False)
    assert not read_pretrained(folder).normalise
    rewrite(folder / "preprocessor_config.json", do_normalize=...)
    assert read_pretrained(folder).normalise
    (folder / "preprocessor_config.json").unlink()
    assert read_pretrained(folder).normalise


@pytest.mark.parametrize("normalise", [True, False])
def test_preprocessor_as_a_processor_saves_it(folder, tmp_path, normalise):
    """Newer versions have it in `processor_config.json`, which counts before the other file."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=normalise), tokenizer).save_pretrained(folder)
    assert (folder / "processor_config.json").exists()
    rewrite(folder / "preprocessor_config.json", do_normalize=not normalise)
    assert read_pretrained(folder).normalise == normalise
    assert Wav2Vec2FeatureExtractor.from_pretrained(folder).do_normalize == normalise
    (folder / "preprocessor_config.json").unlink()
    assert read_pretrained(folder).normalise == normalise
    rewrite(folder / "processor_config.json", feature_extractor=...)
    assert read_pretrained(folder).normalise


@pytest.mark.parametrize(
    ("kind", "head", "left_out"),
    [
        (KIND, "ForCTC", ["lm_head"]),
        (KIND, "ForPreTraining", ["project_hid", "project_q", "quantizer"]),
        (KIND, "ForXVector", ["classifier", "feature_extractor", "objective", "projector", "tdnn"]),
        ("hubert", "ForSequenceClassification", ["classifier", "projector"]),
        ("wavlm", "ForCTC", ["lm_head"]),
        ("bert_relative_key", "ForCTC", ["lm_head"]),
    ],
)
def test_heads_are_left_out(kind, head, left_out, tmp_path):
    """The names then have a prefix; the encoder within is what transformers runs."""
    save_model(kind, tmp_path, head)
    module, found = loaded(tmp_path, kind)
    assert found == left_out
    inner = getattr(make_model(kind, head), make_model(kind).base_model_prefix)
    state = inner.state_dict()
    for own, theirs in file_names(module).items():
        assert torch.equal(module.state_dict()[own], state[theirs])


def test_mms(tmp_path):
    """The adapters and output layers of languages are no part of the encoder."""
    save_mms(tmp_path)
    assert len(list(tmp_path.glob("adapter.*.safetensors"))) == 2
    module, left_out = loaded(tmp_path)
    assert left_out == ["adapter_layer", "lm_head"]
    theirs = make_model(KIND, "ForCTC", adapter_attn_dim=4, vocab_size=7).wav2vec2.state_dict()
    assert all(torch.equal(module.state_dict()[own], theirs[name]) for own, name in file_names(module).items())


def test_shards(tmp_path):
    save_model(KIND, tmp_path, max_shard_size="20KB")
    assert len(weight_files(tmp_path)) > 2
    assert_same(loaded(tmp_path)[0])


def test_old_names_of_weight_norm(folder):
    ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def old(name):
        for new, before in ends.items():
            name = name.replace(new, before)
        return name

    rename(folder, old)
    assert_same(loaded(folder)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_whole(dtype, folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    module, _ = loaded(folder)
    assert all(tensor.dtype == torch.float32 for tensor in module.state_dict().values())
    assert_same(module, atol=0.05)


def test_without_an_embedding_of_masks(folder):
    """It is left as it was; models that were trained without masks have none."""
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "masked_spec_embed"}, path)
    module, _ = loaded(folder)
    assert not module.mask_embedding.any()
    module.mask_embedding = torch.nn.Parameter(same_as_theirs(KIND).mask_embedding.detach().clone())
    assert_same(module)


@torch.inference_mode()
def test_what_is_loaded_computes_what_transformers_does(folder):
    module, _ = loaded(folder)
    x, lens = audio_of(KIND, [5000, 9000])
    states, frames = states_of(module, x, lens)
    theirs = their_states(KIND, x[:1, :5000])
    torch.testing.assert_close(states[-1][0, : frames[0]], theirs[-1][0], rtol=1e-4, atol=1e-4)


def test_the_hash_is_of_configuration_and_weights(folder):
    found = {pretrained_sha256(folder)}
    (folder / "README.md").write_text("no part of it")
    assert pretrained_sha256(folder) in found
    (folder / "processor_config.json").write_text("{}")
    found.add(pretrained_sha256(folder))
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        rewrite(folder / name, more=1)
        found.add(pretrained_sha256(folder))
    rename(folder, str, lm_head=torch.zeros(1))
    found.add(pretrained_sha256(folder))
    assert len(found) == 6


def refused(folder):
    """The line with which a folder is refused, within bounds of memory and time, with nothing loaded."""
    made = []

    def load():
        pretrained = read_pretrained(folder)
        module = torch.nn.Module()
        module.frontend = make_frontend(pretrained.encoder, pretrained.encoder_conf)
        module.encoder = make_encoder(pretrained.encoder, pretrained.encoder_conf)
        module.mask_embedding = torch.nn.Parameter(torch.zeros(module.encoder.output_size))
        made.append((module, {name: tensor.clone() for name, tensor in module.state_dict().items()}))
        load_pretrained(pretrained, module)

    line = refusal(load)
    for module, before in made:
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    return line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map: the model asks for code of its own"),
        ({"trust_remote_code": True}, "trust_remote_code: the model asks for code"),
        ({"custom_pipelines": {"asr": {"impl": "evil.P"}}}, "custom_pipelines: the model asks for code"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: the model asks for quantised weights"),
        ({"add_adapter": True}, "add_adapter: the model asks for layers above the encoder"),
        (
            {"model_type": "data2vec-audio"},
            "model_type 'data2vec-audio': known: hubert, wav2vec2, ",
        ),
        ({"model_type": "wavlmm"}, "did you mean 'wavlm'?"),
        ({"model_type": ["wav2vec2"]}, "model_type ['wav2vec2']: known: "),
        ({"model_type": ...}, "the key 'model_type' is missing"),
        ({"hidden_size": 64}, "expected (64,) by config.json"),
        ({"num_hidden_layers": 4}, "encoder.layers.3.attention.k_proj.bias is missing"),
        ({"num_hidden_layers": 2}, "tensor encoder.layers.2.attention.k_proj.bias is unexpected"),
        ({"num_hidden_layers": 10**9}, "its options ask for more or larger tensors than its file of weights has"),
        ({"intermediate_size": 10**9}, "its options ask for more or larger tensors"),
        ({"hidden_size": 10**300}, "encoder_conf: "),
        (
            {"conv_dim": [8] * 100_000, "conv_kernel": [2] * 100_000, "conv_stride": [2] * 100_000},
            "its options ask for",
        ),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
        ({"hidden_size": "32"}, "hidden_size: expected a whole number, found '32'"),
        ({"hidden_act": "os.system"}, "hidden_act: 'os.system'; known: "),
        ({"conv_dim": {"a": [1]}}, "config.json: encoder_conf: "),
        ({"mask_time_prob": 7}, "mask_time_prob: 7 is not between 0 and 1"),
        ({"mask_time_length": "\x1b[2J"}, "mask_time_length: expected a whole number"),
    ],
)
def test_hostile_configurations(changes, message, folder):
    rewrite(folder / "config.json", **changes)
    line = refused(folder)
    assert message in line and str(folder) in line


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[1, 2]", "config.json: expected a dict"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", "[" * 100_000, "config.json: not valid JSON"),
        ("config.json", " " * (1 << 25), "config.json: more than"),
        ("config.json", '{"model_type": ' + "9" * 5000 + "}", "config.json: not valid JSON"),
        ("preprocessor_config.json", "7", "preprocessor_config.json: expected a dict"),
        ("processor_config.json", "[]", "processor_config.json: expected a dict"),
        ("processor_config.json", '{"feature_extractor": 1}', "feature_extractor: expected names and values, found 1"),
        ("processor_config.json", '{"feature_extractor": {"sampling_rate": 8000}}', "sampling_rate: 8000: only models"),
        ("preprocessor_config.json", '{"do_normalize": "yes"}', "do_normalize: expected true or false, found yes"),
        (
            "preprocessor_config.json",
            '{"sampling_rate": 8000}',
            "sampling_rate: 8000: only models of audio at",
        ),
    ],
)
def test_hostile_json(name, text, message, folder):
    (folder / name).write_text(text)
    assert message in refused(folder)


def test_no_configuration(folder):
    (folder / "config.json").unlink()
    assert "config.json: no such file; give the folder of a model" in refused(folder)


def spoil(content, how):
    """The bytes of a file of safetensors, altered."""
    header = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + header])
    name = "encoder.layers.0.attention.k_proj.bias"
    if how == "cut off":
        return content[:-100]
    if how == "header cut off":
        return content[:50]
    if how == "long header":
        return (1 << 40).to_bytes(8, "little") + content[8:]
    if how == "larger than the file":
        said[name]["data_offsets"][1] += 1 << 40
    if how == "other shape":
        said[name]["shape"] = [4, 8]
    if how == "lying shape":
        said[name]["shape"] = [1 << 40]
    if how == "other type":
        said[name]["dtype"] = "I32"
    made = json.dumps(said).encode()
    return len(made).to_bytes(8, "little") + made + content[8 + header :]


def test_a_pointer_in_the_place_of_weights(folder):
    """As git leaves it without LFS."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1261990257\n"
    (folder / "model.safetensors").write_text(pointer)
    rewrite(folder / "config.json", num_hidden_layers=24, hidden_size=1024, intermediate_size=4096)
    line = refused(folder)
    assert "model.safetensors: damaged" in line and "fetch it again" in line and "config.json" not in line


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut off", "model.safetensors: damaged"),
        ("header cut off", "model.safetensors: damaged"),
        ("long header", "model.safetensors: damaged (a header of 1099511627776 bytes"),
        ("larger than the file", "model.safetensors: damaged"),
        ("lying shape", "model.safetensors: damaged"),
        ("other shape", "encoder.layers.0.attention.k_proj.bias is (4, 8), expected (32,) by config.json"),
        ("other type", "encoder.layers.0.attention.k_proj.bias is (32,) torch.int32, expected (32,) torch.float32"),
    ],
)
def test_spoilt_weights(how, message, folder):
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes(), how))
    assert message in refused(folder)


def test_strange_tensors(folder, saved):
    path = folder / "model.safetensors"
    for more, message in (
        ({"encoder.layers.0.more": torch.zeros(1)}, "tensor encoder.layers.0.more is unexpected"),
        ({"surprise": torch.zeros(1)}, "tensor surprise is unexpected"),
        ({"wav2vec2.masked_spec_embed": torch.zeros(32)}, "is unexpected"),
        ({"encoder.pos_conv_embed.conv.weight_g": torch.zeros(1, 1, 16)}, "comes a second time"),
        (
            {"encoder.layer_norm.weight": torch.full((32,), torch.nan)},
            "layer_norm.weight holds NaN or infinity",
        ),
    ):
        rename(folder, str, **more)
        assert message in refused(folder)
        shutil.copy(saved / path.name, path)


def shards(folder, weight_map):
    path = folder / "model.safetensors"
    path.rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../model/model-00001-of-00001.safetensors"}, "is no file of safetensors beside it"),
        ({"a": "/etc/passwd"}, "'/etc/passwd' is no file of safetensors beside it"),
        ({"a": "pytorch_model.bin"}, "is no file of safetensors beside it"),
        ({"a": ["x"]}, "is no file of safetensors beside it"),
        ({"a": "..safetensors"}, "..safetensors: no such file"),
        ({"a": "model-00002-of-00002.safetensors"}, "model-00002-of-00002.safetensors: no such file; give the folder"),
        ({}, "weight_map: names no file"),
        ([1], "weight_map: names no file"),
        ({"a": "model-00001-of-00001.safetensors"}, ""),
    ],
)
def test_shards_of_an_index(weight_map, message, folder):
    shards(folder, weight_map)
    if message:
        assert message in refused(folder)
    else:
        assert_same(loaded(folder)[0])


def test_a_device_in_place_of_weights(folder):
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no such file, but a device" in refused(folder)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('run')",)


def test_a_pickle_is_not_read(folder):
    path = folder / "model.safetensors"
    path.unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: a pickle, which can run anything, is not read" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "model.safetensors: no such file; give the folder" in refused(folder)


def test_the_command_that_converts_a_pickle(folder):
    """It works when it is pasted, and what it makes is read."""
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    command = refused(folder).partition("if you trust it: ")[2]
    subprocess.run(shlex.split(command), check=True)
    assert_same(loaded(folder)[0])


def test_sites_of_what_is_missing_on_both_sides(folder):
    """A module without a front end has no room for that of the folder."""
    module = torch.nn.Module()
    module.encoder = make_encoder(*TINY[KIND])
    with pytest.raises(PelasrError, match="tensor feature_extractor.conv_layers.0.conv.bias is unexpected"):
        load_pretrained(read_pretrained(folder), module)
