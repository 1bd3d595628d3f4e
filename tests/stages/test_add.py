"""A new language from data directories elsewhere."""

from dataclasses import replace

import pytest
from places import place

from pelasr.data.kaldi import read_data_dir, write_data_dir
from pelasr.errors import DataError, PelasrError
from pelasr.stages.add import add_language, copy_data_dir


def test_a_new_language_comes_from_elsewhere(tmp_path, monkeypatch):
    """Copied under the name that the stages look for, its audio where it is; other contents are not overwritten."""
    place(tmp_path, "")
    source, target = tmp_path / "data/train_xx", tmp_path / "recipe/train_xx"
    monkeypatch.chdir(tmp_path)
    first = read_data_dir(source)[0]
    write_data_dir(source, [replace(first, audio="train.wav")])
    copy_data_dir(source, target, "xx")
    assert [(u.text, u.audio) for u in read_data_dir(target)] == [("ab", str(tmp_path / "train.wav"))]
    copy_data_dir(source, target, "xx")  # the same again
    copy_data_dir(target, target, "xx")  # what is there already
    write_data_dir(source, [replace(first, audio="train.wav"), replace(first, id="v", recording="v")])
    (target / "skipped.txt").write_text("v too short\n")
    copy_data_dir(source, target, "xx")  # but for what --skip_bad has dropped
    (target / "skipped.txt").unlink()
    write_data_dir(source, [replace(first, text="other")])
    with pytest.raises(PelasrError, match="train_xx holds other data than .*: delete it"):
        copy_data_dir(source, target, "xx")
    with pytest.raises(PelasrError, match="utt2lang: utterance u is 'xx', not 'yy'"):
        copy_data_dir(source, tmp_path / "recipe/train_yy", "yy")


def test_a_new_language_hears_of_everything_at_once(tmp_path):
    """Two faulty directories from elsewhere: one is not there, in the other nothing is in the language."""
    where = place(tmp_path, "none")
    folders = {"train": tmp_path / "none", "dev": where.data / "dev_xx", "test": where.data / "test_xx"}
    (where.data / "test_xx/utt2lang").unlink()
    with pytest.raises(DataError) as caught:
        add_language(where, "yy", folders, ["train", "dev", "test"], {}, False, 1)
    absent, other = caught.value.problems
    assert absent.startswith(f"{tmp_path}/none: no such data directory")
    assert other.startswith(f"{where.data}/dev_xx/utt2lang: utterance u is 'xx', not 'yy'; cure: ")
    with pytest.raises(DataError) as caught:
        add_language(where, "zz", {}, ["train", "dev"], {}, False, 1)
    assert [line.split(":")[0] for line in caught.value.problems] == [f"{where.data}/{n}_zz" for n in ("train", "dev")]
