"""Where a model lies, and what is done with it in Python."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_data import TRAINING, noises, write_set
from tiny_exp import make_exp, make_packs
from tiny_speech import RATE, make_recogniser, make_translator, noise

import pelasr
from pelasr.adapters.hooks import _adapt
from pelasr.backbones.source import Source, find_backbone_of
from pelasr.backbones.store import load_backbone
from pelasr.data.hears import USUAL
from pelasr.data.place import Place
from pelasr.decode.long_audio import cut, join
from pelasr.decode.sets import Service, Wanted, decode_sets
from pelasr.errors import DataError, PelasrError
from pelasr.stages.stats import make_features


def test_backbones_and_experiments_with_packs(tmp_path):
    exp = make_exp(tmp_path)
    assert find_backbone_of(exp / "A1") == (exp / "A1", "backbone")
    folder, weights = find_backbone_of(exp / "A5")
    assert folder.resolve() == (exp / "A1").resolve() and weights == "backbone"
    (exp / "A5/model.yaml").write_text("backbone: ../A1\nweights: early\n")
    assert find_backbone_of(exp / "A5")[1] == "early"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: ../A1\n", "the key 'weights' is missing"),
        ("backbone: ../A1\nweights: last\n", "weights: expected backbone or early, found last"),
        ("backbone: ../A1\nweights: backbone\nlanguage: hi\n", "unknown key 'language'"),
        ("backbone: ../A2\nweights: backbone\n", "A2 has no backbone.yaml"),
    ],
)
def test_a_wrong_model_yaml(tmp_path, text, message):
    exp = make_exp(tmp_path)
    (exp / "A5/model.yaml").write_text(text)
    with pytest.raises(PelasrError, match=f"A5/model.yaml: .*{message}"):
        find_backbone_of(exp / "A5")


def test_no_model(tmp_path):
    with pytest.raises(PelasrError, match="neither model.yaml .* nor backbone.yaml"):
        find_backbone_of(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Experiments A1, A5 (houlsby: hi, ur, uk), A6 (fine-tuning: pa) and 2 (translation); nothing writes there."""
    folder = tmp_path_factory.mktemp("exp")
    make_recogniser(folder)
    make_packs(folder / "A6", load_backbone(folder / "A1"), ("pa", "te"), method="full", seed=3)
    make_translator(folder)
    return folder


@pytest.fixture
def exp(made, tmp_path) -> Path:
    """The same, to be written to."""
    return Path(shutil.copytree(made, tmp_path / "exp"))


@pytest.mark.parametrize(
    ("name", "weights", "languages"),
    [("A1", None, ["hi", "pa"]), ("A5", "A5", ["hi", "ur", "uk"]), ("A6", "A6", ["pa"]), ("2", None, ["en-de"])],
)
def test_the_same_as_stage_6(made, tmp_path, name, weights, languages):
    """On the same utterances: the same texts and scores."""
    for language in languages:
        write_set(tmp_path / f"data/test_{language}", language, 5, seed=len(language))
    place = Place(tmp_path / "data", tmp_path / "dump", tmp_path, languages)
    make_features(place, ["test"], nj=1, hears=USUAL)
    source, packs = made / ("2" if name == "2" else "A1"), made / weights / "packs" if weights else None
    service = Service(Source(source), packs)
    decode_sets(place, service, [Wanted("test", key) for key in languages], tmp_path / "decode", ngpu=0)
    model = pelasr.load(made / name)
    for language in languages:
        folder, output = tmp_path / f"data/test_{language}", tmp_path / f"decode/test_{language}"
        texts = model.decode([folder / f"{number}.wav" for number in range(5)], language)
        lines = (output / "text").read_text(encoding="utf-8").splitlines()
        assert texts == [line.partition(" ")[2] for line in lines] and len(set(texts)) > 2
        found = join(model.recognise(noises_of(folder), [language] * 5))
        scores = [float(line.split()[1]) for line in (output / "scores").read_text().splitlines()]
        np.testing.assert_allclose([one.score for one in found], scores, atol=2e-4)


def noises_of(folder: Path) -> list[np.ndarray]:
    return [soundfile.read(folder / f"{number}.wav", dtype="float32")[0] for number in range(5)]


def test_languages_and_methods_mixed_are_as_one_by_one(made):
    model = pelasr.load(made / "A5")
    for language in ("pa", "te"):
        model.load_language(made / f"A6/packs/{language}")
    assert model.languages == ["hi", "uk", "ur", "pa", "te"]
    audio = noises(10)
    languages = ["ur", "pa", "hi", "uk", "te", "hi", "uk", "pa", "ur", "hi"]
    mixed = model.decode(audio, languages)
    assert mixed == [model.decode([samples], language)[0] for samples, language in zip(audio, languages, strict=True)]
    assert len(set(model.decode(audio[:1] * 5, model.languages))) == 5  # they are different models
    alone = {name: pelasr.load(made / name) for name in ("A5", "A6")}
    for samples, language, text in zip(audio, languages, mixed, strict=True):
        assert text == alone["A6" if language in ("pa", "te") else "A5"].decode([samples], language)[0]


def test_a_fine_tuned_copy_has_no_copy_of_a_bank(made):
    """Of the bank that hangs on what is copied it keeps the hooks, which know the site alone."""
    model = pelasr.load(made / "A5")
    model.decode([noise(1.0)], "hi")
    model.load_language(made / "A6/packs/pa")
    hooks = [hook for module in model._bank("pa").modules() for hook in module._forward_hooks.values()]
    sites = [hook.args for hook in hooks if hook.func is _adapt]
    assert sites == [("encoder.layers.0",), ("encoder.layers.1",)] and not any(vars(hook) for hook in hooks)


def test_translation_of_mixed_pairs(made):
    model = pelasr.load(made / "2")
    audio, pairs = noises(4), ["en-de", "en-fr"] * 2
    assert model.translates and model.languages == ["en-de", "en-fr"]
    for beam_size in (1, 3):
        mixed = model.decode(audio, pairs, beam_size)
        assert mixed == [model.decode([one], pair, beam_size)[0] for one, pair in zip(audio, pairs, strict=True)]
    assert model.decode(audio, pairs, 5) == model.decode(audio, pairs)
    assert model.decode(audio, "en-de") != model.decode(audio, "en-fr")


@pytest.mark.parametrize(("name", "language", "seconds"), [("A1", "hi", 4.0), ("A5", "uk", 7.5), ("2", "en-fr", 4.0)])
def test_long_audio_is_the_join_of_its_pieces(made, tmp_path, name, language, seconds):
    """Pieces have at most twice the mean length of the utterances that the pack or the backbone was trained with."""
    long = np.concatenate([np.concatenate([noise(1.5, n), np.zeros(8000, np.float32)]) for n in range(30)])
    soundfile.write(tmp_path / "long.wav", long, RATE, subtype="FLOAT")
    pieces = cut(long, RATE, seconds)
    assert len(pieces) > 7
    model = pelasr.load(made / name)
    texts = model.decode([long[start:end] for start, end in pieces], language)
    short = noise(1.0)
    found = model.decode([tmp_path / "long.wav", short], language)
    assert found == [" ".join(text for text in texts if text), *model.decode([short], language)]
    transcript = next(join(model.recognise([long], [language])))
    assert [(round(part.start * RATE), round(part.end * RATE)) for part in transcript.segments] == pieces
    assert [part.text for part in transcript.segments] == texts
    assert transcript.duration == 60.0 and transcript.seconds > 0
    assert transcript.score == pytest.approx(sum(part.score for part in transcript.segments))


def test_more_audio_than_is_searched_at_once(made, monkeypatch):
    model, audio, languages = pelasr.load(made / "A5"), noises(9), ["hi", "ur", "uk"] * 3
    expected = model.decode(audio, languages)
    monkeypatch.setattr("pelasr.decode.long_audio.WINDOW", 300)
    monkeypatch.setattr("pelasr.decode.long_audio.BATCH", 200)
    asked = []

    def one_by_one():
        for number, samples in enumerate(audio):
            asked.append(number)
            yield samples

    windows = model.recognise(one_by_one(), languages)
    first = next(windows)
    assert len(first) == 3 and asked == [0, 1, 2]
    assert [piece.text for window in [first, *windows] for piece in window] == expected


def test_audio_of_nearly_nothing_has_no_text(made, tmp_path):
    model = pelasr.load(made / "A5")
    empty = [np.zeros(count, np.float32) for count in (0, 1, 399)]
    assert model.decode([noise(1.0), *empty], "hi") == [*model.decode([noise(1.0)], "hi"), "", "", ""]
    assert model.decode([], "hi") == []
    assert all(not transcript.segments for transcript in join(model.recognise(empty, ["hi"] * 3)))
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 44100)
    assert model.decode([str(tmp_path / "empty.wav")], ["hi"]) == [""]


def test_audio_too_short_for_the_subsampling_has_no_text(made, tmp_path):
    """Half a second is enough for ESPnet's convolutions, 50 ms are not."""
    from tiny_exp import make_backbone

    conf = {"output_size": 6, "attention_heads": 2, "linear_units": 8, "num_blocks": 1, "input_layer": "conv2d"}
    make_backbone(tmp_path / "A1", num_mels=80, encoder="transformer", encoder_conf=conf)
    model = pelasr.load(tmp_path / "A1")
    short = noise(0.05)
    assert model.decode([short, short[:500]], "hi") == ["", ""]
    assert len(model.decode([noise(0.5)], "hi")[0]) > 0
    longer = [noise(0.5, seed=1), noise(0.45, seed=2)]  # in one batch with it
    (one,), (other,) = (model.decode([audio], "hi") for audio in longer)
    assert model.decode([longer[0], short, longer[1]], "hi") == [one, "", other]


def test_the_backbone_alone(made):
    alone, audio = pelasr.load(made / "A5", adapters=False), noises(3)
    assert alone.languages == ["hi", "ur", "pa"]
    for language in ("hi", "uk"):  # a new language gets the mean of the language vectors
        assert alone.decode(audio, language) == pelasr.load(made / "A1").decode(audio, language)
    assert alone.decode(audio, "hi") != pelasr.load(made / "A5").decode(audio, "hi")
    vectors = alone.backbone.module.language_vector.onehot
    vectors.copy_(vectors.mean(0).expand_as(vectors))
    assert alone.decode(audio, "uk") == alone.decode(audio, "hi")


def test_packs_from_elsewhere(made):
    audio = noises(2)
    model = pelasr.load(made / "A1", packs=made / "A5/packs")
    assert model.languages == ["hi", "uk", "ur"]
    assert model.decode(audio, "uk") == pelasr.load(made / "A5").decode(audio, "uk")
    with pytest.raises(PelasrError, match="no pack of 'pa'; .*known: hi, uk, ur"):
        model.decode(audio, "pa")
    with pytest.raises(PelasrError, match="A1: no packs here"):
        pelasr.load(made / "A5", packs=made / "A1")


def test_a_pack_is_added_to_a_plain_backbone(made):
    audio = noises(2)
    model = pelasr.load(made / "A1")
    before = model.decode(audio, "hi")
    assert model.load_language(made / "A5/packs/hi") == "hi"
    assert model.decode(audio, "hi") == pelasr.load(made / "A5").decode(audio, "hi") != before
    assert model.decode(audio, "ur") == pelasr.load(made / "A1").decode(audio, "ur")


def test_a_broken_pack_is_no_matter_until_it_is_asked_for(exp):
    path = exp / "A5/packs/uk/pack.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    model = pelasr.load(exp / "A5")
    assert model.languages == ["hi", "uk", "ur"]
    assert len(model.decode(noises(2), "hi")) == 2
    for ask in (lambda: model.decode(noises(2), ["hi", "uk"]), model.params, lambda: model.save("uk", exp / "uk")):
        with pytest.raises(PelasrError, match="packs/uk/pack.safetensors: "):
            ask()


def test_packs_are_saved_byte_by_byte_and_loaded_again(exp, tmp_path):
    model = pelasr.load(exp / "A5")
    model.load_language(exp / "A6/packs/pa")
    audio = noises(3)
    for name, language in (("A5", "uk"), ("A5", "hi"), ("A6", "pa")):
        folder = tmp_path / "packs" / language
        model.save(language, folder)
        for file in ("pack.yaml", "pack.safetensors"):
            assert (folder / file).read_bytes() == (exp / name / "packs" / language / file).read_bytes()
        model.save(language, folder)  # it is that pack already
        again = pelasr.load(exp / "A1", packs=tmp_path / "packs")
        assert again.decode(audio, language) == model.decode(audio, language)
    with pytest.raises(PelasrError, match="packs/uk: exists already"):
        model.save("hi", tmp_path / "packs/uk")
    with pytest.raises(PelasrError, match="exists already"):
        model.save("hi", tmp_path)


def test_params(made):
    model = pelasr.load(made / "A5")
    size = sum(tensor.numel() for tensor in model.backbone.module.parameters())
    model.load_language(made / "A6/packs/pa")
    found = model.params()
    # Two layers with a bottleneck of 4: two matrices and biases; a language vector of 3; 2 tokens at embedding and
    # output layer.
    houlsby = 2 * (2 * 6 + 2 * 6 * 4 + 4 + 6)
    own = 3 + 2 * 6 + 2 * (6 + 1)
    assert found["backbone"] == size
    assert found["languages"] == {"hi": houlsby, "uk": houlsby + own, "ur": houlsby, "pa": size}
    assert found["total"] == size + 3 * houlsby + own + size


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.decode([noise(1.0)], "xx"), "A5: no pack of 'xx'; known: hi, uk, ur"),
        (lambda m: m.decode([noise(1.0)], "en-de"), "A5 transcribes languages, not 'en-de'"),
        (lambda m: m.decode(noise(1.0), "hi"), "want a list of files or arrays"),
        (lambda m: m.decode("a.wav", "hi"), "want a list of files or arrays"),
        (lambda m: m.decode(["a.wav"], "hi"), "a.wav: no such audio file"),
        (lambda m: m.decode(["a.wav"], ["hi", "ur"]), "1 audios, but 2 languages"),
        (lambda m: m.decode([noise(1.0)], "hi", beam_size=3), "beam_size 3: an RNN-T is searched greedily"),
        (lambda m: m.decode([np.zeros((5, 2), np.float32)], "hi"), r"audio of float32 \(5, 2\): want 16 kHz mono"),
        (lambda m: m.decode([np.zeros(5, np.int16)], "hi"), r"audio of int16 \(5,\)"),
        (lambda m: m.decode([np.full(5000, np.nan)], "hi"), "finite floats"),
        (lambda m: m.add_language("hi"), "'hi' is there already: .*A5/packs/hi"),
        (lambda m: m.add_language("te", adapter="hulsby"), "no method 'hulsby'; did you mean 'houlsby'"),
        (lambda m: m.add_language("te", bottlneck=3), "unknown key 'bottlneck'; did you mean 'bottleneck'"),
        (lambda m: m.add_language("te", bottleneck="x"), "site encoder.layers.0"),
        (lambda m: m.add_language("te", tokens="new"), "tokens: 'new'; known: auto, keep, own"),
        (lambda m: m.add_language("../te"), "'../te' is no language"),
        (lambda m: m.add_language("en-de"), "transcribes languages, not 'en-de'"),
        (lambda m: m.fit("te", train="a", dev="b"), "'te' was not added"),
        (lambda m: m.load_language("nowhere/te"), "no pack of 'te'"),
        (lambda m: m.save("te", "x"), "no pack of 'te'"),
    ],
)
def test_what_is_wrong_is_said_at_once(made, ask, message):
    with pytest.raises(PelasrError, match=message) as caught:
        ask(pelasr.load(made / "A5"))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_model_or_pack(made, exp):
    with pytest.raises(PelasrError, match="neither model.yaml"):
        pelasr.load(exp)
    with pytest.raises(PelasrError, match="translates pairs, not 'en'; known: en-de, en-fr"):
        pelasr.load(made / "2").decode([noise(1.0)], "en")
    with pytest.raises(PelasrError, match="the token list has no <lang:nl>"):
        pelasr.load(made / "2").decode([noise(1.0)], "en-nl")
    shutil.rmtree(exp / "A6/packs")
    with pytest.raises(PelasrError, match="no pack of 'pa'; there are none yet"):
        pelasr.load(exp / "A6").decode([noise(1.0)], "pa")
    model = pelasr.load(made / "A5")
    with pytest.raises(PelasrError, match="'uk' is there already"):
        model.load_language(exp / "A5/packs/uk")
    make_recogniser(exp / "other", seed=7)
    with pytest.raises(PelasrError, match="backbone_sha256"):
        pelasr.load(made / "A1").load_language(exp / "other/A5/packs/uk")
    if not torch.cuda.is_available():
        with pytest.raises(PelasrError, match="sees no GPU"):
            pelasr.load(made / "A5", device="cuda")


def test_a_language_is_added_fitted_saved_and_loaded(exp, tmp_path, capsys):
    for name, count, seed in (("train", 8, 0), ("dev", 3, 20)):
        write_set(tmp_path / f"te_{name}", "te", count, ["aé", "bc", "éd"], seed)
    folders = {"train": tmp_path / "te_train", "dev": tmp_path / "te_dev"}
    model, audio = pelasr.load(exp / "A5"), noises(4)
    old = {language: model.decode(audio, language) for language in model.languages}
    model.add_language("te", adapter="houlsby", bottleneck=3)
    with pytest.raises(PelasrError, match="'te' is not fitted yet"):
        model.decode(audio, "te")
    with pytest.raises(PelasrError, match="fit of te: unknown key 'max_epochs'; did you mean 'max_epoch'"):
        model.fit("te", **folders, max_epochs=1)
    with pytest.raises(PelasrError, match="max_epoch: 0 is not"):
        model.fit("te", **folders, max_epoch=0)
    with pytest.raises(DataError, match="nowhere: no such data directory"):
        model.fit("te", train=tmp_path / "nowhere", dev=tmp_path / "te_dev")
    dev = model.fit("te", **folders, **TRAINING)
    assert set(dev) == {"loss", "wer"} and dev["loss"] > 0
    assert model.languages == ["hi", "uk", "ur", "te"]
    texts = model.decode(audio, "te")
    assert {language: model.decode(audio, language) for language in old} == old
    assert sorted(path.name for path in (exp / "A5/packs").iterdir()) == ["hi", "uk", "ur"]

    model.save("te", tmp_path / "packs/te")
    fresh = pelasr.load(exp / "A5")
    assert {language: fresh.decode(audio, language) for language in old} == old
    assert fresh.load_language(tmp_path / "packs/te") == "te"
    assert fresh.decode(audio, "te") == texts
    assert fresh.decode(audio, ["te", "hi", "ur", "uk"]) == [texts[0], old["hi"][1], old["ur"][2], old["uk"][3]]
    assert fresh.params() == model.params()

    again = pelasr.load(exp / "A5")  # as after an interruption: what is done is not done again
    again.add_language("te", bottleneck=3)
    capsys.readouterr()
    assert again.fit("te", **folders, **TRAINING) == dev
    assert "are fitted already" in capsys.readouterr().out
    assert again.decode(audio, "te") == texts
    assert pelasr.load(exp / "A5/fit_te_api").decode(audio, "te") == texts  # an experiment of its own
    other = pelasr.load(exp / "A5")
    other.add_language("te", bottleneck=5)
    with pytest.raises(PelasrError, match="holds a run with other settings .*bottleneck"):
        other.fit("te", **folders, **TRAINING)


def test_a_known_language_is_fitted_on_a_plain_backbone(exp, tmp_path):
    for name, seed in (("train", 0), ("dev", 20)):
        write_set(tmp_path / f"ur_{name}", "ur", 6, seed=seed)
    model, audio = pelasr.load(exp / "A1"), noises(3)
    before = model.decode(audio, "hi")
    model.add_language("ur", bottleneck=2)
    folders = {"train": tmp_path / "ur_train", "dev": tmp_path / "ur_dev"}
    model.fit("ur", **folders, folder=tmp_path / "run", **{**TRAINING, "optim_conf": {"lr": 0.5}})
    assert not any(path.name.startswith("fit") for path in (exp / "A1").iterdir())
    assert model.decode(audio, "hi") == before
    assert model.params()["languages"] == {"ur": 2 * (2 * 6 + 2 * 6 * 2 + 2 + 6)}


@pytest.mark.parametrize(("method", "frozen"), [("full", False), ("bitfit", True)])
def test_what_is_said_of_the_backbone_when_a_language_is_fitted(exp, tmp_path, capsys, method, frozen):
    for name, seed in (("train", 0), ("dev", 20)):
        write_set(tmp_path / f"ur_{name}", "ur", 3, seed=seed)
    model = pelasr.load(exp / "A1")
    model.add_language("ur", adapter=method, **({"sites": "joint"} if frozen else {}))
    model.fit("ur", train=tmp_path / "ur_train", dev=tmp_path / "ur_dev", folder=tmp_path / "run", **TRAINING)
    told = capsys.readouterr().err
    assert "training " in told and ("the backbone is frozen" in told) == frozen
