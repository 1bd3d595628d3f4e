import os
from dataclasses import replace

import pytest

from pelasr.data.kaldi import (
    Utterance,
    add_skipped,
    audio_sha256,
    data_sha256,
    parse,
    read_data_dir,
    text_of,
    write_data_dir,
)
from pelasr.data.language import split_pair
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


def test_without_utt2lang_the_reader_knows_the_language(tmp_path):
    directory = good(tmp_path / "d")
    (directory / "utt2lang").unlink()
    for key, language in (("mr", "mr"), ("en-de", "en")):
        assert [u.language for u in read_data_dir(directory, key)] == [language] * 2
    put(directory, utt2lang="a hi\nb hi\n")
    assert [u.language for u in read_data_dir(directory, "mr")] == ["hi"] * 2


def test_no_utterances(tmp_path):
    directory = good(tmp_path / "d", wav_scp="", text="", utt2spk="", utt2lang="")
    assert only_problem(directory).startswith(f"{directory}: no utterances: its files are empty; cure: ")
    with pytest.raises(DataError, match="no utterances to write"):
        write_data_dir(tmp_path / "e", [])
    problem = only_problem(good(directory, text=""))
    assert problem.startswith(f"{directory}/text: empty; cure: write lines of `utterance transcript`")
    problem = only_problem(good(directory, segments=""))
    assert problem.endswith(f"if every recording is an utterance: rm {directory}/segments [empty]")


@pytest.mark.parametrize("quote", ['"{}"', "'{}'", "“{}”", "`{}`"])
def test_a_path_in_quotes_is_shown_without(tmp_path, monkeypatch, quote):
    monkeypatch.chdir(tmp_path)
    quoted = quote.format("b c.wav")
    directory = good(tmp_path / "d", wav_scp=f"a a.wav\nb {quoted}\n")
    assert f"the path is in quotes: {quoted}; cure: take the quotes out: b c.wav" in only_problem(directory)
    (tmp_path / quoted).touch()  # it has that name
    assert read_data_dir(directory)[1].audio == quoted


def test_names_of_audio_files_may_be_any_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = good(tmp_path / "d", wav_scp=b"a caf\xe9.wav\nb b.wav\n")
    problem = only_problem(directory)
    assert "wav.scp:1: utterance a: no audio file caf\\xe9.wav, whose name is not UTF-8; cure" in problem
    for name in (b"caf\xe9.wav", b"b.wav"):
        (tmp_path / os.fsdecode(name)).touch()
    read = read_data_dir(directory)
    assert os.fsencode(read[0].audio) == b"caf\xe9.wav" and audio_sha256(directory)
    write_data_dir(tmp_path / "copy", read)
    assert (tmp_path / "copy/wav.scp").read_bytes() == (directory / "wav.scp").read_bytes()
    assert read_data_dir(tmp_path / "copy") == read


def test_the_same_fault_of_many_is_one_line(tmp_path):
    names = [f"u{n:02}" for n in range(100)]
    files = {name: "".join(f"{u} x\n" for u in names) for name in ("wav_scp", "text", "utt2lang")}
    problem = only_problem(good(tmp_path / "d", **files, utt2spk="u00 s\n"))
    assert problem.startswith(
        f"{tmp_path}/d/wav.scp: 99 utterances, such as u01 (line 2), u02 (line 3), u03 (line 4): not in"
    )


ODD = ["", "x", " x ", "\u2028", "a\u00a0b", "a\0b", "\ufeff", "क्\u200dष", "\u200b", "x\u0085y", "\ue000", "é", "\x1c"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("field", ["id", "recording", "audio", "text", "speaker", "language", "translation"])
def test_what_is_written_can_be_read_or_is_refused(tmp_path, field, text):
    """Whatever there is in a field: either the writer refuses it, or the reader gives it back."""
    change = {"translations": {"de": text}} if field == "translation" else {field: text}
    given = replace(utterance(recording="r", start=0.5, end=1.0), **change)
    try:
        write_data_dir(tmp_path / "d", [given])
    except DataError as error:
        assert not (tmp_path / "d").exists() and str(error).replace("\n", "").isprintable()
        return
    (read,) = read_data_dir(tmp_path / "d")
    outer = " \t\r"  # spaces around a text are not kept
    translations = {target: found.strip(outer) for target, found in given.translations.items()}
    assert read == replace(given, text=given.text.strip(outer), translations=translations)


def test_writer_refuses_segments_and_bytes_that_cannot_be_read(tmp_path):
    for bad, words in (
        (utterance(recording="r", start=2.0, end=1.0), "from 2.0 to 1.0 s is no segment"),
        (utterance(text="caf\udce9"), "text is not UTF-8"),
        (utterance("u\udce9", recording="r"), "id 'u\\\\udce9' must be one word, without bytes that are not UTF-8"),
        (utterance("u\u200b", recording="r"), "without U\\+200B ZERO WIDTH SPACE"),
    ):
        with pytest.raises(DataError, match=words):
            write_data_dir(tmp_path / "d", [bad])
