"""What the first stages decide by themselves: which checks apply to which data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from places import experiment, place, translated

from pelasr.config import load_yaml
from pelasr.data.batch import load_examples
from pelasr.data.features import INDEX
from pelasr.data.hears import USUAL
from pelasr.data.kaldi import read_data_dir, write_data_dir
from pelasr.data.place import Place
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import DataError, PelasrError
from pelasr.stages.add import copy_data_dir
from pelasr.stages.data import validate_data
from pelasr.stages.stats import make_stats
from pelasr.stages.tokens import make_tokens
from pelasr.stages.train import train_backbone

ROOT = Path(__file__).parents[2]


def validate(where: Place, config: str, skip_bad: bool = False) -> bool:
    return validate_data(where, ["train", "dev", "test"], load_yaml(ROOT / "conf" / config), skip_bad, nj=1)


def test_training_with_ctc_wants_a_frame_for_each_label(tmp_path):
    with pytest.raises(DataError, match="train_xx/wav.scp:1: utterance u: too short for its text"):
        validate(place(tmp_path, "train"), "rnnt_mini.yaml")


@pytest.mark.parametrize(("fast", "config"), [("train", "rnnt_kannan2019.yaml"), ("test", "rnnt_mini.yaml")])
def test_without_ctc_and_in_other_sets_speech_may_be_fast(tmp_path, fast, config):
    assert validate(place(tmp_path, fast), config)


def test_audio_that_changed_in_place_is_checked_again(tmp_path):
    where = place(tmp_path, "none")
    assert validate(where, "rnnt_mini.yaml")
    assert not validate(where, "rnnt_mini.yaml")
    soundfile.write(tmp_path / "dev.wav", np.zeros(8000), 16000)
    with pytest.raises(DataError, match="dev_xx/wav.scp:1: utterance u: .*silence"):
        validate(where, "rnnt_mini.yaml")


def test_an_unknown_target_is_found_before_anything_else(tmp_path):
    where = translated(tmp_path)
    with pytest.raises(DataError, match="text.nl: no translations into nl"):
        validate_data(replace(where, languages=["en-nl"]), ["train"], load_yaml(ROOT / "conf/st_mini.yaml"), False, 1)


def test_without_utt2lang_all_stages_agree(tmp_path, capsys):
    """The directory's name says the language, to stages 1 to 3, to training and to a copy."""
    where = place(tmp_path, "none")
    for name in ("train", "dev", "test"):
        (where.data / f"{name}_xx/utt2lang").unlink()
    assert validate(where, "rnnt_mini.yaml")
    assert "xx, train: 1 utterance, 0.00 h" in capsys.readouterr().out
    assert make_tokens(where, [], ["dev", "test"], "char", 0) and make_stats(where, ["train", "dev"], nj=1, hears=USUAL)
    (example,) = load_examples(where, "train", "xx", Tokenizer.load(where.tokens))
    assert (example.id, example.language) == ("u", "xx")
    copy_data_dir(where.data / "train_xx", tmp_path / "copy/train_yy", "yy")
    assert (tmp_path / "copy/train_yy/utt2lang").read_text() == "u yy\n"
    copy_data_dir(where.data / "train_xx", tmp_path / "copy/train_yy", "yy")  # the same again


def test_skip_bad_without_utt2lang(tmp_path):
    where = place(tmp_path, "none")
    first = read_data_dir(where.data / "dev_xx")[0]
    write_data_dir(where.data / "dev_xx", [first, replace(first, id="v", recording="v", text="")])
    (where.data / "dev_xx/utt2lang").unlink()
    assert validate(where, "rnnt_mini.yaml", skip_bad=True)
    assert [u.id for u in read_data_dir(where.data / "dev_xx", "xx")] == ["u"]


def test_texts_of_white_space_alone_are_said_with_the_rest(tmp_path):
    where = place(tmp_path, "none")
    for name in ("train", "dev"):
        (where.data / f"{name}_xx/text").write_text("u \u00a0\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        validate(where, "rnnt_mini.yaml")
    assert [line.split(":")[0][-12:] for line in caught.value.problems[:2]] == ["rain_xx/text", "/dev_xx/text"]


def test_no_stage_says_to_run_itself(tmp_path):
    where = place(tmp_path, "none")
    with pytest.raises(DataError) as caught:
        validate(replace(where, languages=["none"]), "rnnt_mini.yaml")
    assert "run " not in str(caught.value) and "(stage" not in str(caught.value)
    config = load_yaml(ROOT / "conf/rnnt_mini.yaml")
    with pytest.raises(
        PelasrError, match="asr/backbone.safetensors: no such file; train it first: pelasr train --exp asr"
    ):
        train_backbone(where, experiment("2"), config, "", 0, init="asr")
    make_tokens(where, [], [], "char", 0)
    make_stats(where, ["train"], nj=1, hears=USUAL)
    for file in INDEX:
        (where.dump / f"train_xx/{file}").write_text("")
    with pytest.raises(PelasrError, match="train_xx: no features of 1 utterance, as u; cure: run stage 3, for a new"):
        load_examples(where, "train", "xx", Tokenizer.load(where.tokens))
    (where.dump / "train_xx/feats.scp").unlink()
    with pytest.raises(PelasrError, match="feats.scp: no features; cure: run stage 3, for a new language stage 5"):
        load_examples(where, "train", "xx", Tokenizer.load(where.tokens))
    assert make_stats(where, ["train"], nj=1, hears=USUAL) and load_examples(
        where, "train", "xx", Tokenizer.load(where.tokens)
    )
