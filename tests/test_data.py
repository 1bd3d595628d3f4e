import os
from dataclasses import replace

import pytest

from pelasr.data import (
    Utterance,
    add_skipped,
    data_sha256,
    parse,
    read_data_dir,
    split_pair,
    text_of,
    write_data_dir,
)
from pelasr.errors import DataError


def utterance(name="u1", audio="u1.wav", text="नमस्ते दुनिया", recording=None, start=None, end=None, speaker="s1"):
    return Utterance(name, recording or name, str(audio), start, end, text, speaker, "hi")


def put(directory, **files):
    """Write files of a data directory: `wav_scp="..."` becomes wav.scp."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (directory / name.replace("_", ".")).write_bytes(raw)
    return directory


def good(directory, **changes):
    files = {"wav_scp": "a a.wav\nb b.wav\n", "text": "a x\nb y\n", "utt2spk": "a s\nb s\n", "utt2lang": "a hi\nb hi\n"}
    return put(directory, **{**files, **changes})


def problems(directory):
    with pytest.raises(DataError) as caught:
        read_data_dir(directory)
    return caught.value.problems


def only_problem(directory):
    (problem,) = problems(directory)
    return problem


def test_write_then_read_gives_the_same(tmp_path):
    given = [utterance(name, f"dir with space/{name}.wav") for name in ("b", "a", "B", "a-1", "ä", "あ")]
    write_data_dir(tmp_path / "d", given)
    assert read_data_dir(tmp_path / "d") == sorted(given, key=lambda u: u.id.encode())
    assert not (tmp_path / "d/segments").exists()
    assert (tmp_path / "d/spk2utt").read_text() == "s1 B a a-1 b ä あ\n"


def test_segments_round_trip(tmp_path):
    given = [
        utterance("u1", "r.ark:12", recording="r", start=0.1, end=1 / 3),
        utterance("u2", "r.ark:12", recording="r"),
    ]
    given += [utterance("u3", "q.wav", recording="q", start=2.5)]
    write_data_dir(tmp_path, given)
    assert read_data_dir(tmp_path) == given
    assert (tmp_path / "wav.scp").read_text() == "q q.wav\nr r.ark:12\n"
    write_data_dir(tmp_path, [utterance()])
    assert read_data_dir(tmp_path) == [utterance()]


def test_files_are_sorted_in_the_c_locale(tmp_path):
    write_data_dir(tmp_path, [utterance(name) for name in ("é", "z", "Z", "a_b", "a-b", "aB", "𐍈", "\uffe0")])
    for file in ("wav.scp", "text", "utt2spk", "utt2lang"):
        lines = (tmp_path / file).read_bytes().splitlines()
        assert lines == sorted(lines)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_data_dir(tmp_path, [utterance(text="old")])

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_data_dir(tmp_path, [utterance(text="new")])
    monkeypatch.undo()
    assert read_data_dir(tmp_path) == [utterance(text="old")]
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([utterance(), utterance()], "given twice"),
        ([utterance("a b")], "must be one word"),
        ([utterance(speaker="")], "speaker '' must be one word"),
        ([utterance(text="a\nb")], "line end"),
        ([utterance(audio="")], "no audio named"),
        ([utterance(audio="sox x |")], "is a command"),
        ([utterance("a", "p", recording="r", end=1.0), utterance("b", "q", recording="r")], "is both p and q"),
    ],
)
def test_writer_refuses_what_cannot_be_read_back(tmp_path, bad, words):
    with pytest.raises(DataError, match=words):
        write_data_dir(tmp_path / "d", bad)
    assert not (tmp_path / "d").exists()


def test_missing_directory(tmp_path):
    assert "no such data directory" in only_problem(tmp_path / "none")


def test_missing_utt2lang_says_how_to_write_it(tmp_path):
    directory = good(tmp_path / "d")
    (directory / "utt2lang").unlink()
    problem = only_problem(directory)
    assert problem.startswith(f"{directory}/utt2lang: missing; cure: write lines of `utterance language`")
    assert f"awk '{{print $1, \"hi\"}}' {directory}/utt2spk > {directory}/utt2lang" in problem


def test_unsorted(tmp_path):
    directory = good(tmp_path / "d", text="b y\na x\n")
    cure = f"LC_ALL=C sort -o {directory}/text {directory}/text"
    expected = f"{directory}/text:2: utterance a: not sorted: comes after b; cure: {cure} [unsorted]"
    assert only_problem(directory) == expected


def test_duplicate(tmp_path):
    problem = only_problem(good(tmp_path / "d", utt2spk="a s\na t\nb s\n"))
    assert "utt2spk:2: utterance a: id is already on line 1; cure: keep one" in problem


def test_not_utf8_names_the_line(tmp_path):
    problem = only_problem(good(tmp_path / "d", text="a caf\u00e9\nb y\n".encode("latin-1")))
    assert "text:1: utterance a: not UTF-8; cure: iconv -f ENCODING -t UTF-8" in problem


def test_a_true_replacement_character_is_utf8(tmp_path):
    assert read_data_dir(good(tmp_path / "d", text="a \ufffd\nb y\u2028z\n"))[1].text == "y\u2028z"


def test_line_format(tmp_path):
    found = problems(good(tmp_path / "d", text="\ufeffa x\r\nb y\r\n", utt2spk="a s\n\nb s\n"))
    assert [problem.rpartition("[")[2] for problem in found] == ["line-format]"] * 3
    assert "text:1: byte-order mark" in found[0] and "sed -i" in found[0]
    assert "text:1: Windows line ends; cure: sed -i 's/\\r$//'" in found[1]
    assert "utt2spk:2: empty line; cure: sed -i '2d'" in found[2]


def test_ids_in_one_file_and_not_in_another(tmp_path):
    found = problems(good(tmp_path / "d", text="a x\nc z\n", utt2lang="a hi\nb hi\nc hi\n"))
    assert "wav.scp:2: utterance b: not in text; cure" in found[0]
    assert "text:2: utterance c: not in wav.scp, utt2spk; cure" in found[1]


def test_every_problem_is_reported_at_once(tmp_path):
    directory = good(tmp_path / "d", text="b y\na x\na x\n", utt2spk="a s\nb\n", utt2lang="a hi en\nb hi\n")
    kinds = [problem.kind for problem in parse(directory).problems]
    assert kinds == ["unsorted", "duplicate", "missing-value", "missing-value"]


def test_hidden_white_space(tmp_path):
    found = problems(good(tmp_path / "d", utt2spk="a s\u00a0\nb s\n"))
    assert len(found) == 1 and "utt2spk:1: utterance a: speaker is 's\\xa0', want one word; cure" in found[0]
    files = {"wav_scp": "a\u00a0b a.wav\n", "text": "a\u00a0b x\n", "utt2spk": "a\u00a0b s\n"}
    problem = only_problem(good(tmp_path / "d", **files, utt2lang="a\u00a0b hi\n"))
    assert "wav.scp:1: " in problem and "white space within the id 'a\\xa0b'; cure: rename it" in problem


def test_pipes_are_refused(tmp_path):
    problem = only_problem(good(tmp_path / "d", wav_scp="a a.wav\nb sph2pipe b.sph |\n"))
    assert (
        "wav.scp:2: utterance b: 'sph2pipe b.sph |' is a command" in problem and "cure: run the command once" in problem
    )


@pytest.mark.parametrize("segment", ["r 1.0", "r 2 1", "r -1 1", "r x y", "r 0 nan", "r 0 inf"])
def test_bad_segment(tmp_path, segment):
    problem = only_problem(good(tmp_path / "d", wav_scp="r r.wav\n", segments=f"a {segment}\nb r 0 1\n"))
    assert f"segments:1: utterance a: segment is '{segment}'; cure" in problem


def test_segment_of_an_unknown_recording(tmp_path):
    problem = only_problem(good(tmp_path / "d", wav_scp="r r.wav\n", segments="a r 0 1\nb q 0 1\n"))
    assert "segments:2: utterance b: recording q is not in wav.scp" in problem


def test_sha256_follows_the_files_not_the_place(tmp_path):
    first, second = good(tmp_path / "one"), good(tmp_path / "two")
    assert data_sha256([first]) == data_sha256([second])
    good(second, text="a x\nb z\n")
    assert data_sha256([first]) != data_sha256([second])


def translated(name="u1", **translations):
    return replace(utterance(name, f"{name}.wav"), translations=translations)


def test_translations_round_trip(tmp_path):
    given = [translated("b", de="Grüß Gott!", fr=""), translated("a", de="Ja,\u2028nein.", fr="Où ? «\xa0là\xa0»")]
    write_data_dir(tmp_path, given)
    assert read_data_dir(tmp_path) == given[::-1]
    assert (tmp_path / "text.de").read_text(encoding="utf-8") == "a Ja,\u2028nein.\nb Grüß Gott!\n"
    assert (tmp_path / "text.fr").read_text(encoding="utf-8").splitlines()[1] == "b"


def test_files_of_targets_that_are_gone_are_removed(tmp_path):
    write_data_dir(tmp_path, [translated(de="x", fr="y")])
    write_data_dir(tmp_path, [translated(fr="y")])
    assert read_data_dir(tmp_path) == [translated(fr="y")]
    write_data_dir(tmp_path, [translated()])
    assert sorted(file.name for file in tmp_path.glob("text*")) == ["text"]


def test_translations_are_hashed(tmp_path):
    write_data_dir(tmp_path / "one", [translated()])
    hashes = [data_sha256([tmp_path / "one"])]
    for text in ("x", "y"):
        write_data_dir(tmp_path / "one", [translated(de=text)])
        hashes.append(data_sha256([tmp_path / "one"]))
    assert len(set(hashes)) == 3
    write_data_dir(tmp_path / "two", [translated(de="y")])
    assert data_sha256([tmp_path / "two"]) == hashes[-1]


def test_faults_of_translations_name_their_line(tmp_path):
    directory = put(good(tmp_path / "d"), text_de="b y\na x\nc z\n", text_fr="a \xff\n".encode("latin-1"))
    found = problems(directory)
    assert [problem.rpartition("[")[2] for problem in found] == ["unsorted]", "not-utf8]", "missing-id]", "missing-id]"]
    assert found[0].startswith(f"{directory}/text.de:2: utterance a: not sorted")
    assert found[1].startswith(f"{directory}/text.fr:1: utterance a: not UTF-8")
    assert "wav.scp:2: utterance b: not in text.fr; cure" in found[2]
    assert "text.de:3: utterance c: not in wav.scp, text, text.fr, utt2spk, utt2lang; cure" in found[3]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            [translated("a", de="x", fr="y"), translated("b", de="x")],
            "utterance b: no translation into fr, which others",
        ),
        (
            [translated("a", de="x"), translated("b")],
            "utterance b: no translation into de, which others have; cure: add",
        ),
        ([translated("a", de="x\ny")], "utterance a: text has a line end"),
        ([replace(translated("a"), translations={"pt-br": "x"})], "target 'pt-br' is no language"),
    ],
)
def test_writer_refuses_uneven_translations(tmp_path, bad, words):
    with pytest.raises(DataError, match=words):
        write_data_dir(tmp_path / "d", bad)
    assert not (tmp_path / "d").exists()


def test_language_keys():
    assert split_pair("hi") == ("hi", None) and split_pair("en-de") == ("en", "de")
    for bad in ("", "-de", "en-", "en-de-fr"):
        with pytest.raises(DataError, match="is no language; cure"):
            split_pair(bad)
    given = translated(de="Ja", fr="Oui")
    assert text_of(given, "hi") == given.text and text_of(given, "hi-fr") == "Oui"
    with pytest.raises(DataError, match=r"u1: no translation into nl \(there is: de fr\); cure: write text.nl"):
        text_of(given, "hi-nl")


def test_skipped_utterances_add_up(tmp_path):
    add_skipped(tmp_path, {"b": "noise", "a": "silence"})
    add_skipped(tmp_path, {"c": "short", "b": "noise"})
    assert (tmp_path / "skipped.txt").read_text() == "a silence\nb noise\nc short\n"
