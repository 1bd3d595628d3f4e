"""What `score` and `compare` write, and which texts they refuse."""

from importlib.metadata import version

import pytest
from sacrebleu.metrics import BLEU, CHRF

from pelasr import __version__
from pelasr.errors import DataError, PelasrError
from pelasr.score.bleu import signature
from pelasr.score.decoded import compare, read_text, score
from pelasr.score.environment import commit
from pelasr.score.results import KEYS, SETTINGS, latest, read_results
from pelasr.tasks.base import find_task

FACTS = {
    "recipe": "tiny",
    "experiment": "A5",
    "method": "houlsby",
    "trainable_parameters": 10,
    "total_parameters": 1000,
    "seed": 1,
    "config_sha256": "c" * 64,
    "data_sha256": "d" * 64,
    **dict.fromkeys(SETTINGS),
}
RECOGNITION, TRANSLATION = find_task("recognition"), find_task("translation")


def test_read_text(tmp_path):
    path = tmp_path / "text"
    path.write_text("u1 a  b\u2028c\nu2\nu3\te\u0301", encoding="utf-8")
    assert read_text(path) == {"u1": "a b c", "u2": "", "u3": "é"}
    for content, message in (("u1 a\n\nu2 b\n", "text:2: empty line"), ("u1 a\nu1 b\n", "text:2: utterance u1")):
        path.write_text(content)
        with pytest.raises(PelasrError, match=message):
            read_text(path)
    with pytest.raises(PelasrError, match="no such file"):
        read_text(tmp_path / "none")


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{utterance} {text}\n" for utterance, text in texts.items()), encoding="utf-8")


def place(root, language, references, **hypotheses):
    """Write the references of a language and each experiment's hypotheses."""
    write(root / "data" / f"test_{language}" / "text", references)
    for name, texts in hypotheses.items():
        write(root / "exp" / name / "decode" / f"test_{language}" / "text", texts)


@pytest.fixture
def root(tmp_path):
    references = {"u2": "d e", "u1": "a b c"}
    place(tmp_path, "hi", references, A1={"u1": "a x", "u2": "d"}, A5={"u1": "a b", "u2": "d e"})
    place(tmp_path, "ur", {"v1": "p q r s"}, A1={"v1": "p"}, A5={"v1": "p q x s s"})
    return tmp_path


def folders(root, *languages):
    return {language: root / "data" / f"test_{language}" for language in languages}


def run(root, **changed):
    return score(RECOGNITION, {**FACTS, **changed}, "test", folders(root, "hi", "ur"), root / "exp")


def test_score_appends_exact_lines(root):
    lines = run(root)
    assert read_results(root / "exp" / "results.jsonl") == lines
    assert all(list(line) == KEYS for line in lines)
    values = {(line["metric"], line["language"]): line["value"] for line in lines}
    assert values == {
        ("wer", "hi"): 20.0,  # one deletion of five words
        ("wer", "ur"): 50.0,  # a substitution and an insertion over four
        ("wer", "mean"): 35.0,  # unweighted; the pooled rate would be 33.3
        ("cer", "hi"): 25.0,  # " c" of eight characters
        ("cer", "ur"): round(300 / 7, 4),
        ("cer", "mean"): round((25 + 300 / 7) / 2, 4),
    }
    mean = lines[2]
    assert (mean["utterances"], mean["reference_words"]) == (3, 9)
    assert mean["scorer"] == f"jiwer {version('jiwer')}"
    assert mean["commit"] == commit()
    assert mean | FACTS == mean


def test_score_writes_counts_beside_the_text(root):
    run(root)
    folder = root / "exp" / "A5" / "decode" / "test_hi"
    assert (folder / "score.tsv").read_text().splitlines() == [
        "utt\twords\thits\tsub\tdel\tins\tref\thyp",
        "u1\t3\t2\t0\t1\t0\ta b c\ta b",
        "u2\t2\t2\t0\t0\t0\td e\td e",
    ]
    assert (
        folder / "result.txt"
    ).read_text() == "Snt Wrd Corr Sub Del Ins Err S.Err\n2 5 80.0 0.0 20.0 0.0 20.0 50.0\n"


def test_scoring_again_adds_only_what_changed(root):
    path = root / "exp" / "results.jsonl"
    first = run(root)
    before = path.read_bytes()
    run(root)
    assert path.read_bytes() == before
    place(root, "ur", {"v1": "p q r s"}, A5={"v1": "p q r s"})
    second = run(root)
    results = read_results(path)
    assert results[: len(first)] == first
    assert results[len(first) :] == [line for line in second if line["language"] != "hi"]
    assert latest(results)["A5", "test", "mean", "wer"]["value"] == 10.0
    # and back: the line equals an older one, but not the latest of its key
    place(root, "ur", {"v1": "p q r s"}, A5={"v1": "p q x s s"})
    run(root)
    assert latest(read_results(path))["A5", "test", "mean", "wer"]["value"] == 35.0


def test_one_language_has_no_mean(root):
    lines = score(RECOGNITION, FACTS, "test", folders(root, "hi"), root / "exp")
    assert [(line["metric"], line["language"]) for line in lines] == [("wer", "hi"), ("cer", "hi")]


def test_compare_appends_differences(root):
    lines = compare(RECOGNITION, FACTS, "A1", "test", folders(root, "hi", "ur"), root / "exp")
    # A1: three errors of five words, three of four
    found = [(line["experiment"], line["metric"], line["language"], line["value"]) for line in lines]
    assert found == [("A5", "wer_minus_A1", name, value) for name, value in (("hi", -40), ("ur", -25), ("mean", -32.5))]
    assert all(line["lo"] <= line["value"] <= line["hi"] for line in lines)
    assert read_results(root / "exp" / "results.jsonl") == lines


def test_hypotheses_must_fit_the_references(root):
    place(root, "hi", {"u1": "a", "u2": "b", "u3": "c"}, A5={"u1": "a", "u2": "b"})
    with pytest.raises(PelasrError, match="1 utterances without a hypothesis: u3; decode again"):
        run(root)
    place(root, "hi", {"u1": "a"}, A5={"u1": "a", "u9": "b"})
    with pytest.raises(PelasrError, match="unknown to .*data/test_hi/text: u9"):
        run(root)
    place(root, "hi", {"u1": ""}, A5={"u1": "a"})
    with pytest.raises(PelasrError, match="no reference has a word"):
        run(root)
    assert not (root / "exp" / "results.jsonl").exists()


def test_facts_must_be_complete(root):
    with pytest.raises(PelasrError, match="wanted are .*data_sha256"):
        score(RECOGNITION, {"recipe": "tiny"}, "test", folders(root, "hi"), root / "exp")


HOURS = {"en-de": 0.5, "en-fr": 408.25}
GERMAN = {"u1": "Das ist ein Haus, sagt er.", "u2": "Es regnet heute in Bonn."}
FRENCH = {"u1": "C'est une maison, dit-il.", "u2": "Il pleut aujourd'hui à Bonn."}
TRANSLATED = {
    "A1": ({"u1": "das ist Haus, sagt er", "u2": "Es regnet in Bonn."}, {"u1": "", "u2": "Il pleut à Bonn."}),
    "A5": ({"u1": "Das ist ein Haus, sagt sie.", "u2": "Es regnet heute in Bonn."}, FRENCH),
}


@pytest.fixture
def translated(tmp_path):
    """Two experiments; one folder of data, the targets' references side by side, and none in the source language."""
    for target, references in (("de", GERMAN), ("fr", FRENCH)):
        write(tmp_path / "data/test_en" / f"text.{target}", references)
    for name, texts in TRANSLATED.items():
        for target, hypotheses in zip(("de", "fr"), texts, strict=True):
            folder = tmp_path / "exp" / name / "decode" / f"test_en-{target}"
            write(folder / "text", hypotheses)
            (folder / "limited").write_text("u2\n" if (name, target) == ("A5", "de") else "")
    return tmp_path


def translate(root, *pairs):
    return {pair: root / "data" / "test_en" for pair in pairs or ("en-de", "en-fr")}


def test_pairs_have_bleu_chrf_hours_and_limited(translated):
    lines = score(TRANSLATION, FACTS, "test", translate(translated), translated / "exp", HOURS)
    assert read_results(translated / "exp" / "results.jsonl") == lines
    assert all(list(line) == KEYS and line | FACTS == line for line in lines)
    found = {(line["metric"], line["language"]): line for line in lines}
    own = {"bleu": BLEU(), "chrf": CHRF()}
    for metric, scorer in own.items():
        sides = zip(TRANSLATED["A5"], (GERMAN, FRENCH), strict=True)
        expected = [scorer.corpus_score([*h.values()], [[*r.values()]]).score for h, r in sides]
        cells = [found[metric, key] for key in ("en-de", "en-fr", "mean")]
        assert [cell["value"] for cell in cells] == [round(v, 4) for v in (*expected, sum(expected) / 2)]
        assert 50 < expected[0] < expected[1] and expected[1] == pytest.approx(100)
        assert all(cell["lo"] <= cell["value"] <= cell["hi"] for cell in cells)
        assert {cell["scorer"] for cell in cells} == {signature(metric)}
        assert [(cell["utterances"], cell["reference_words"]) for cell in cells] == [(2, 11), (2, 9), (4, 20)]
    exact = {key: line for key, line in found.items() if key[0] not in own}
    assert {key: line["value"] for key, line in exact.items()} == {
        ("limited", "en-de"): 1,
        ("limited", "en-fr"): 0,
        ("limited", "mean"): 0.5,
        ("train_hours", "en-de"): 0.5,
        ("train_hours", "en-fr"): 408.25,
    }
    assert all(line["lo"] == line["value"] == line["hi"] for line in exact.values())
    assert {line["scorer"] for line in exact.values()} == {f"pelasr {__version__}"}
    assert len(lines) == 11


def test_translations_are_written_beside_the_text(translated):
    score(TRANSLATION, FACTS, "test", translate(translated, "en-de"), translated / "exp")
    folder = translated / "exp/A5/decode/test_en-de"
    sentence = BLEU(effective_order=True).sentence_score(TRANSLATED["A5"][0]["u1"], [GERMAN["u1"]]).score
    assert (folder / "score.tsv").read_text().splitlines() == [
        "utt\tbleu\tref\thyp",
        f"u1\t{sentence:.2f}\tDas ist ein Haus, sagt er.\tDas ist ein Haus, sagt sie.",
        "u2\t100.00\tEs regnet heute in Bonn.\tEs regnet heute in Bonn.",
    ]
    bleu, chrf = (folder / "result.txt").read_text().splitlines()
    assert bleu.startswith(signature("bleu") + " = ") and "BP = 1.000" in bleu and chrf.startswith(signature("chrf"))


def test_one_pair_has_no_mean(translated):
    lines = score(TRANSLATION, FACTS, "test", translate(translated, "en-de"), translated / "exp", HOURS)
    assert [line["metric"] for line in lines] == ["bleu", "chrf", "limited", "train_hours"]
    assert {line["language"] for line in lines} == {"en-de"}


def test_compare_of_pairs_is_positive_where_better(translated):
    pairs = translate(translated)
    sides = {}
    for name in ("A1", "A5"):
        for line in score(TRANSLATION, {**FACTS, "experiment": name}, "test", pairs, translated / "exp"):
            sides[name, line["metric"], line["language"]] = line["value"]
    lines = compare(TRANSLATION, FACTS, "A1", "test", pairs, translated / "exp")
    assert [(line["metric"], line["language"]) for line in lines] == [
        (f"{metric}_minus_A1", key) for metric in ("bleu", "chrf") for key in ("en-de", "en-fr", "mean")
    ]
    for line in lines:
        metric = line["metric"].removesuffix("_minus_A1")
        assert line["scorer"] == signature(metric)
        difference = sides["A5", metric, line["language"]] - sides["A1", metric, line["language"]]
        assert line["value"] == pytest.approx(difference, abs=2e-4) and line["value"] > 0
        assert line["lo"] <= line["value"] <= line["hi"]
    same = compare(TRANSLATION, {**FACTS, "experiment": "A1"}, "A1", "test", pairs, translated / "exp")
    assert {(line["value"], line["lo"], line["hi"]) for line in same} == {(0, 0, 0)}


def test_translations_that_cannot_be_scored(translated):
    folder = translated / "exp/A5/decode/test_en-de"
    for content, message in (("u7\n", "limited: u7 is not among the hypotheses; decode again"), (None, "no such file")):
        (folder / "limited").write_text(content) if content else (folder / "limited").unlink()
        with pytest.raises(PelasrError, match=message):
            score(TRANSLATION, FACTS, "test", translate(translated), translated / "exp")
    with pytest.raises(PelasrError, match="test_en/text.it: no such file"):
        score(TRANSLATION, FACTS, "test", translate(translated, "en-it"), translated / "exp")
    with pytest.raises(PelasrError, match="en en-de: languages and pairs have no figure in common"):
        score(TRANSLATION, FACTS, "test", translate(translated, "en", "en-de"), translated / "exp")
    with pytest.raises(DataError, match="en-de-fr"):
        score(TRANSLATION, FACTS, "test", translate(translated, "en-de-fr"), translated / "exp")
    assert not (translated / "exp" / "results.jsonl").exists()
