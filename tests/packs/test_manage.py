"""The verbs `pelasr packs ...` on tiny models, from the command line's entry on."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
import yaml
from tiny_exp import TRAINING, make_backbone, make_exp, make_packs, retensor, rewrite

from pelasr.backbones.store import load_backbone
from pelasr.cli.main import main
from pelasr.packs.pack import load_bank, read_pack
from pelasr.storage import load_weights

RESULT = {
    **{"recipe": "tiny/asr1", "experiment": "A5", "set": "test", "method": "houlsby", "metric": "wer"},
    **{"utterances": 40, "reference_words": 300, "trainable_parameters": 9, "total_parameters": 99, "seed": 0},
    **{"config_sha256": TRAINING["config_sha256"], "data_sha256": "d" * 64, "scorer": "jiwer 4", "commit": "abc"},
}
CONFORMER = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2, "cnn_module_kernel": 3}


@pytest.fixture
def exp(tmp_path):
    return make_exp(tmp_path / "exp")


def run(capsys, *arguments):
    """What a verb prints."""
    main(["packs", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments):
    """Its error, one line, and what it printed before."""
    with pytest.raises(SystemExit) as caught:
        main(["packs", *map(str, arguments)])
    text = str(caught.value.code)
    assert text.startswith("error: ") and text.isprintable()
    return text, capsys.readouterr().out


def encode(backbone, batch, bank=None, language=None):
    """Encoder output of a batch, all rows in one language if there is one."""
    given = batch.feats, batch.lens, batch.language_ids
    if bank is None:
        return backbone.module.encode(*given)[0]
    with bank.route([language] * len(batch)):
        return backbone.module.encode(*given)[0]


def test_list(exp, capsys):
    lines = run(capsys, "list", exp).splitlines()
    assert lines[0].split() == ["language", "method", "parameters", "dev", "own", "tokens", "pack"]
    assert lines[1].split() == ["hi", "houlsby", "140", "wer", "12.50", "0", str(exp / "A5/packs/hi")]
    assert lines[2].split() == ["uk", "houlsby", "169", "wer", "12.50", "2", "ї", "ґ", str(exp / "A5/packs/uk")]
    assert len(lines) == 4
    assert len(run(capsys, "list", exp / "A5/packs/hi", exp / "A5/packs/ur").splitlines()) == 3
    error, printed = refused(capsys, "list", exp / "A1")
    assert "A1: no packs here" in error
    (exp / "A5/packs/hi/pack.yaml").write_text("x: 1\n")
    error, printed = refused(capsys, "list", exp)
    assert error == "error: 1 of 3 packs refused"
    assert f"refused: {exp}/A5/packs/hi/pack.yaml: altered" in printed and len(printed.splitlines()) == 4


def test_list_escapes_what_cannot_be_printed(exp, capsys):
    """Names in a stranger's pack must not drive a terminal."""
    rewrite(exp / "A5/packs/hi", adapter="houl\x1b[2Jsby", training={**TRAINING, "dev": {"w\x1b[31m": 3.0}})
    for verb, *more in (("list", exp), ("verify", exp / "A5/packs/hi")):
        printed = run(capsys, verb, *more)
        assert "houl\\x1b[2Jsby" in printed and "\x1b" not in printed


def test_show(exp, capsys):
    shown = run(capsys, "show", exp / "A5/packs/uk")
    assert yaml.safe_load(shown) == asdict(read_pack(exp / "A5/packs/uk"))
    assert "own_tokens:\n- ї\n- ґ\n" in shown
    assert "no pack of 'ta'; known: hi, uk, ur" in refused(capsys, "show", exp / "A5/packs/ta")[0]


def test_verify(exp, capsys, tmp_path):
    packs = exp / "A5/packs"
    printed = run(capsys, "verify", "--model", exp / "A5", packs / "hi", packs / "uk").splitlines()
    assert printed == [
        f"ok: {packs}/hi: hi, houlsby, 140 parameters, belongs to {exp}/A5",
        f"ok: {packs}/uk: uk, houlsby, 169 parameters, belongs to {exp}/A5",
    ]
    assert "not compared with a model" in run(capsys, "verify", packs / "hi")
    make_packs(tmp_path / "other/B5", make_backbone(tmp_path / "other/B1", seed=1), languages=["pa"])
    other = tmp_path / "other/B5/packs/pa"
    assert run(capsys, "verify", other).startswith("ok: ")
    retensor(packs / "ur", lambda tensors: tensors.update(extra=torch.ones(1)))
    error, printed = refused(capsys, "verify", "--model", exp / "A1", packs / "hi", packs / "ur", other)
    assert error == "error: 2 of 3 packs refused"
    lines = printed.splitlines()
    assert lines[0].startswith("ok: ") and "tensor extra is unexpected" in lines[1]
    assert lines[2].startswith(f"refused: {other}/pack.yaml: backbone_sha256 is ")


def test_verify_finds_twins(exp, capsys):
    packs = exp / "A5/packs"
    tensors = load_weights(packs / "hi/pack.safetensors")
    retensor(packs / "ur", lambda found: found.update(tensors))
    printed = run(capsys, "verify", packs / "hi", packs / "uk", packs / "ur").splitlines()
    assert printed[-1] == f"{packs}/ur: holds the same tensors as {packs}/hi"
    assert len(printed) == 4


def test_verify_without_a_model_finds_nan(exp, capsys):
    packs = exp / "A5/packs"
    retensor(packs / "hi", lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    assert "holds NaN or infinity" in refused(capsys, "verify", packs / "hi")[1]


def merge(exp, *packs, output, weights=(), language="hi"):
    shares = ["--weights", *weights] if weights else []
    folders = [exp / "A5/packs" / pack for pack in packs]
    return ["merge", *folders, *shares, "--language", language, "--output", output, "--model", exp / "A5"]


def test_merge_is_the_weighted_average(exp, capsys, make_batch):
    out = exp / "merged/packs/hi"
    run(capsys, *merge(exp, "hi", "ur", output=out, weights=[3, 1]))
    hi, ur, mean = (load_weights(folder / "pack.safetensors") for folder in (*two(exp), out))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * hi[name] + 0.25 * ur[name])
    backbone = load_backbone(exp / "A1")
    by_hand = load_bank(exp / "A5/packs", ["hi"], backbone)
    with torch.no_grad():
        for name, tensor in by_hand.tensors("hi").items():
            tensor.copy_(0.75 * hi[name] + 0.25 * ur[name])
    batch = make_batch(["hi", "ur"])
    wanted = encode(backbone, batch, by_hand, "hi")
    other = load_backbone(exp / "A1")
    found = encode(other, batch, load_bank(out.parent, ["hi"], other), "hi")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    plain = encode(load_backbone(exp / "A1"), batch)
    assert not torch.allclose(found, plain, atol=0.01)
    training = read_pack(out).training
    assert [(entry["language"], entry["weight"]) for entry in training["merged"]] == [("hi", 0.75), ("ur", 0.25)]


def test_a_merged_pack_says_what_it_is_made_of(exp, capsys, tmp_path):
    """Nobody can fit it again, or restore it where the experiment is gone."""
    out = exp / "merged/packs/hi"
    run(capsys, *merge(exp, "hi", "ur", output=out, weights=[3, 1]))
    how = "merge it again (it is the average of 0.75 hi and 0.25 ur)"
    make_backbone(tmp_path / "other/A1", seed=1)
    for model in (tmp_path / "other/A1", exp / "A1"):
        printed = refused(capsys, "verify", "--model", model, out)[1] if model != exp / "A1" else ""
        assert how in printed or not printed
    (out / "pack.safetensors").write_bytes(b"")
    for model in (["--model", exp / "A5"], []):
        printed = refused(capsys, "verify", out, *model)[1]
        assert f"restore it, or {how}" in printed and "fit" not in printed


def two(exp):
    return exp / "A5/packs/hi", exp / "A5/packs/ur"


def test_a_merge_with_itself_or_all_weight_on_one_is_that_pack(exp, capsys, make_batch):
    batch, wanted = make_batch(["hi", "ur"]), None
    for n, (packs, weights) in enumerate(((["ur"] * 2, ()), (["ur"] * 3, (1, 2, 4)), (["hi", "ur"], (0, 5)))):
        out = exp / f"merged{n}/packs/ur"
        run(capsys, *merge(exp, *packs, output=out, weights=weights, language="ur"))
        backbone = load_backbone(exp / "A1")
        found = encode(backbone, batch, load_bank(out.parent, ["ur"], backbone), "ur")
        backbone = load_backbone(exp / "A1")
        wanted = encode(backbone, batch, load_bank(exp / "A5/packs", ["ur"], backbone), "ur")
        assert torch.equal(found, wanted)


def test_packs_with_own_tokens_merge(exp, capsys, tmp_path):
    make_packs(tmp_path / "B5", load_backbone(exp / "A1"), languages=["uk"], seed=2)
    packs = [exp / "A5/packs/uk", tmp_path / "B5/packs/uk"]
    tail = ["--language", "be", "--output", tmp_path / "be", "--model", exp / "A5"]
    run(capsys, "merge", *packs, *tail)
    assert read_pack(tmp_path / "be").own_tokens == ["ї", "ґ"]
    one, other, mean = (load_weights(folder / "pack.safetensors") for folder in (*packs, tmp_path / "be"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)


def test_merge_of_what_settles(exp, capsys, tmp_path):
    """Packs of prefixes that training had from a network, and from one that no memory holds."""
    backbone = make_backbone(tmp_path / "C1", encoder="conformer", encoder_conf=CONFORMER)
    make_packs(tmp_path / "C5", backbone, method="prefix", frames=2, network=3)
    hi, ur, out = tmp_path / "C5/packs/hi", tmp_path / "C5/packs/ur", tmp_path / "mean/packs/pa"
    (tmp_path / "C5/model.yaml").write_text(yaml.safe_dump({"backbone": "../C1", "weights": "backbone"}))
    for pack in (hi, ur):
        rewrite(pack, adapter_conf={"frames": 2, "network": 10**12})
    run(capsys, "merge", hi, ur, "--language", "pa", "--output", out, "--model", tmp_path / "C5")
    one, other, mean = (load_weights(folder / "pack.safetensors") for folder in (hi, ur, out))
    assert len(mean) == 4
    loaded = load_bank(out.parent, ["pa"], backbone).tensors("pa")
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)
        assert torch.equal(loaded[name], tensor)


def test_what_cannot_be_merged(exp, capsys, tmp_path):
    def error(*packs, **options):
        return refused(capsys, *merge(exp, *packs, output=tmp_path / "out", **options))[0]

    assert "uk/pack.yaml: own_tokens is ['ї', 'ґ'], of " in error("hi", "uk")
    assert "2 packs and 3 weights" in error("hi", "ur", weights=[1, 1, 1])
    assert "1 packs and 1 weights" in error("hi")
    for weights in ([0, 0], [-1, 2], ["nan", 1], [1, "nan"], ["inf", 1]):
        assert "want numbers from 0 on, not all 0" in error("hi", "ur", weights=weights)
    assert "'ta' is new to the backbone (hi ur pa) and has no vector" in error("hi", "ur", language="ta")
    assert "--language: '../x' is no language" in error("hi", "ur", language="../x")
    assert "no pack of 'ta'" in error("hi", "ta")
    make_packs(exp / "B5", load_backbone(exp / "A1"), languages=["pa"], bottleneck=5)
    assert "pa/pack.yaml: adapter_conf is {'bottleneck': 5}" in error("hi", "../../B5/packs/pa")
    make_packs(exp / "B6", make_backbone(exp / "B1", seed=1), languages=["pa"])
    assert "pa/pack.yaml: backbone_sha256 is " in error("hi", "../../B6/packs/pa")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").touch()
    assert "out: exists already" in error("hi", "ur")
    assert (
        "--language is missing"
        in refused(capsys, "merge", *two(exp), "--output", tmp_path / "o", "--model", exp / "A5")[0]
    )


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_fold_is_exact(exp, capsys, make_batch, method):
    """The folded backbone does alone what the backbone does with the pack, and is a backbone like any other."""
    make_packs(exp / "B5", load_backbone(exp / "A1"), languages=["hi"], method=method, sites=["joint", "linear"])
    out = exp / "folded"
    run(capsys, "merge", "--fold", exp / "B5/packs/hi", "--output", out, "--model", exp / "B5")
    backbone, folded = load_backbone(exp / "A1"), load_backbone(out)
    bank = load_bank(exp / "B5/packs", ["hi"], backbone)
    batch = make_batch(["hi", "hi"])
    with bank.route(batch.languages):
        wanted = loss(backbone, batch)
    torch.testing.assert_close(loss(folded, batch), wanted, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(loss(folded, batch), loss(backbone, batch), atol=1e-2)
    assert folded.description.folded["language"] == "hi" and folded.languages == backbone.languages
    assert "backbone_sha256 is" in refused(capsys, "verify", exp / "B5/packs/hi", "--model", out)[1]


def loss(backbone, batch):
    enc, lens = backbone.module.encode(batch.feats, batch.lens, batch.language_ids)
    return backbone.module.loss(enc, lens, batch.targets, batch.target_lens).total


def test_what_cannot_be_folded(exp, capsys, tmp_path):
    tail = ["--output", tmp_path / "out", "--model", exp / "A5"]
    assert "houlsby adapters cannot be folded" in refused(capsys, "merge", "--fold", exp / "A5/packs/hi", *tail)[0]
    assert "tokens or a language vector of its own" in refused(capsys, "merge", "--fold", exp / "A5/packs/uk", *tail)[0]
    assert "--fold takes one pack" in refused(capsys, "merge", "--fold", *two(exp), *tail)[0]
    assert not (tmp_path / "out").exists()


def test_export_and_import(exp, capsys, tmp_path):
    results = [
        {**RESULT, "language": "uk", "value": 12.345, "lo": 10.0, "hi": 15.5},
        {**RESULT, "language": "uk", "set": "dev", "value": 99.0, "lo": 1.0, "hi": 1.0, "config_sha256": "old"},
        {**RESULT, "language": "ur", "value": 77.0, "lo": 1.0, "hi": 1.0},
    ]
    (exp / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    hub = tmp_path / "hub/uk"
    assert run(capsys, "export", exp / "A5/packs/uk", hub) == f"{hub}: README.md, pack.safetensors, pack.yaml\n"
    card = (hub / "README.md").read_text()
    assert "| test | WER, % | 12.35 | 10.00 to 15.50 | 40 | jiwer 4 |" in card
    assert "99.00" not in card and "77.00" not in card and "| training data | 1.25 h, 1,200 utterances |" in card
    assert "exists already" in refused(capsys, "export", exp / "A5/packs/uk", hub)[0]

    shutil.rmtree(exp / "A5/packs/uk")
    target = exp / "A5/packs/uk"
    assert run(capsys, "import", hub, "--model", exp / "A5") == f"{target}: houlsby, 169 parameters\n"
    assert sorted(path.name for path in target.iterdir()) == ["pack.safetensors", "pack.yaml"]
    assert load_bank(exp / "A5/packs", ["hi", "uk"], load_backbone(exp / "A1")).languages == ["hi", "uk"]
    assert run(capsys, "import", hub, "--model", exp / "A5") == f"{target}: is this pack already\n"
    assert sorted(path.name for path in (exp / "A5").iterdir()) == ["model.yaml", "packs"]


def test_what_is_not_imported(exp, capsys, tmp_path):
    backbone = load_backbone(exp / "A1")
    make_packs(tmp_path / "B5", backbone, languages=["hi", "pa"], seed=2)
    make_packs(tmp_path / "C5", backbone, languages=["pa"], bottleneck=5)
    make_packs(tmp_path / "D5", make_backbone(tmp_path / "D1", seed=1), languages=["pa"])
    before = {path: path.read_bytes() for path in exp.rglob("pack*") if path.is_file()}

    def error(pack):
        return refused(capsys, "import", tmp_path / pack, "--model", exp / "A5")[0]

    assert "packs/hi: there is another pack of 'hi'; delete it first" in error("B5/packs/hi")
    assert "adapter_conf is {'bottleneck': 5}, this model's is {'bottleneck': 4}" in error("C5/packs/pa")
    assert "pa/pack.yaml: backbone_sha256 is " in error("D5/packs/pa")
    retensor(tmp_path / "B5/packs/pa", lambda tensors: next(iter(tensors.values())).fill_(torch.inf))
    assert "holds NaN or infinity" in error("B5/packs/pa")
    assert before == {path: path.read_bytes() for path in exp.rglob("pack*") if path.is_file()}
    assert not list(exp.rglob(".import*")) and not (exp / "A5/packs/pa").exists()
    assert (
        "nowhere: no model" in refused(capsys, "import", tmp_path / "B5/packs/hi", "--model", tmp_path / "nowhere")[0]
    )


def test_a_link_that_leads_nowhere_is_not_replaced(exp, capsys, tmp_path):
    hub, target = tmp_path / "hub", exp / "A5/packs/hi"
    run(capsys, "export", target, hub)
    shutil.rmtree(target)
    target.symlink_to(tmp_path / "nowhere")
    error, _ = refused(capsys, "import", hub, "--model", exp / "A5")
    assert f"{target}: there is a link that leads nowhere in the place of a pack of 'hi'; delete it first" in error
    assert target.is_symlink() and not (tmp_path / "nowhere").exists() and not list(exp.rglob(".import*"))
    assert "hi: exists already" in refused(capsys, "export", exp / "A5/packs/ur", target)[0]


def test_import_into_an_experiment_without_packs(exp, capsys, tmp_path):
    shutil.move(exp / "A5/packs/hi", tmp_path / "any name")
    shutil.rmtree(exp / "A5/packs")
    run(capsys, "import", tmp_path / "any name", "--model", exp / "A5")
    assert read_pack(exp / "A5/packs/hi").language == "hi"
