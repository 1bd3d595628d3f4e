"""Every command and code block of the documents runs as it is written, on tiny data; links lead somewhere, and
pages are short.

Each command or block is listed in RUNS, or BLOCKS, with how it is run; one that is not fails
`test_every_block_is_listed`.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
from doc_clone import INDIC, make_clone
from doc_commands import RUNS, pelasr, torchrun
from documents import (
    ALL_DOCUMENTS,
    DOCUMENTS,
    READ_ELSEWHERE,
    ROOT,
    anchors,
    blocks,
    commands,
    files,
    links,
    sentences,
    text_of,
)
from tiny_speech import RATE, noise

from pelasr.data.kaldi import read_data_dir

BLOCKS = {  # other code blocks, by their first line, and the tests that run them
    "import pelasr": "test_from_python",
    "#!/usr/bin/env bash": "test_adding_a_corpus",
    "from pelasr.data import Utterance, write_data_dir": "test_adding_a_corpus",
    "rnnt:": "test_adding_a_corpus",
    "9:": "the row that `--experiments mine.yaml --rows 9` takes",
    "one batch        row 1: hi     row 2: ta     row 3: pa (a new language)": "no code: a drawing",
}
WORDS = {"README.md": 1300, "CONTRIBUTING.md": 500}  # at most, of other pages 1900


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    make_clone(folder)
    return folder


def test_every_block_is_listed():
    """Whoever adds a block lists how it is run."""
    assert {command.text for block in commands() for command in block} == set(RUNS)
    scripts = [block for block in blocks("sh") if block.startswith("#!")]
    found = [block.splitlines()[0] for block in (*scripts, *blocks("python"), *blocks("yaml"), *blocks(""))]
    assert set(found) == set(BLOCKS)
    assert all(name in globals() for name in BLOCKS.values() if name.startswith("test_"))


@pytest.mark.parametrize("block", commands(), ids=lambda block: block[0].text[:60])
def test_commands(clone, monkeypatch, request, block):
    for command in block:
        monkeypatch.chdir(clone / command.folder)
        run = RUNS[command.text]
        more = [request.getfixturevalue("prepared")] if run is torchrun else []
        run(command.text, clone, monkeypatch, *more)


@pytest.mark.parametrize(
    "config, counts",
    {
        "rnnt_kannan2019": (122294388, 2638848),
        "st_le2021": (604800, 36934656),
        "hubert_base": (94371712,),
    }.items(),
)
def test_parameters_are_those_of_the_text(clone, capsys, monkeypatch, config, counts):
    monkeypatch.chdir(clone)
    pelasr(
        next(text for text in RUNS if text.startswith(f"pelasr params --config conf/{config}.yaml")), clone, monkeypatch
    )
    printed = capsys.readouterr().out
    for count in counts:
        assert f"{count:,}" in printed and any(f"{count:,}" in text_of(name) for name in DOCUMENTS)


def block_of(kind: str, first: str) -> str:
    return next(block for block in blocks(kind) if block.startswith(first))


@pytest.mark.parametrize("code", [text for text in blocks("python") if text.startswith("import pelasr\n")])
def test_from_python(clone, monkeypatch, code):
    """As it is written, but for the length of the training."""
    monkeypatch.chdir(clone / INDIC)
    for name in ("packs", "exp/A5/fit_pa_api"):
        shutil.rmtree(name, ignore_errors=True)
    code, epochs = re.subn('(max_epoch"?[:=] ?)60', r"\g<1>1", code)
    code, steps = re.subn("epoch_steps=20", "epoch_steps=2", code)
    assert epochs == steps == 1
    names: dict = {}
    exec(compile(code, "a document", "exec"), names)
    assert names["m"].languages == ["hi", "ta", "ur", "pa"] and Path("packs/pa/pack.yaml").exists()


def test_adding_a_corpus(clone, monkeypatch):
    """The three files, with FSDD's own script, and recordings that are named by a relative path; stage 1."""
    folder = clone / "egs/mine/asr1"
    for name in ("conf", "local"):
        shutil.copytree(ROOT / "egs/fsdd/asr1" / name, folder / name)
    (folder / "run.sh").write_text(block_of("sh", "#!/usr/bin/env bash"))
    (folder / "conf/experiments.yaml").write_text(block_of("yaml", "rnnt:"))
    (clone / "my recordings").mkdir()
    for take in (0, 5, 10):
        soundfile.write(clone / f"my recordings/7_jackson_{take}.wav", noise(1.0, take), RATE)
    command = ["bash", "egs/mine/asr1/run.sh", "--fsdd", "my recordings", "--stop-stage=1", "--nj", "1", "--ngpu", "0"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [u.audio for u in read_data_dir(folder / "data/test_en")] == [f"{clone}/my recordings/7_jackson_0.wav"]
    assert (folder / "exp/made_with").read_text() == "--fsdd 'my recordings'\n"  # the page is not about this machine
    monkeypatch.chdir(clone)
    exec(compile(block_of("python", "from pelasr.data"), "README.md", "exec"), {})
    assert [utterance.text for utterance in read_data_dir("data/train_en")] == ["seven"]


@pytest.mark.parametrize("name", ALL_DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in links(name):
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}: no such heading"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_are_where_documents_say(name):
    """Seen from the repository, from pelasr/, or from a recipe."""
    roots = [ROOT, ROOT / "pelasr", *ROOT.glob("egs/*/*")]
    assert not [file for file in files(name) if not any((root / file).exists() for root in roots)]


@pytest.mark.parametrize("name", ALL_DOCUMENTS)
def test_pages_are_short(name):
    assert len(text_of(name).split()) <= WORDS.get(name, 1900)


def test_every_page_is_linked_from_the_first():
    linked = {link.partition("#")[0] for link in links("README.md")}
    assert {name for name in ALL_DOCUMENTS if name.startswith("docs/")} <= linked


def test_the_design_names_every_folder():
    folders = {path.parent.name for path in ROOT.glob("pelasr/*/__init__.py")}
    assert {folder for folder in folders if f"| `{folder}/` |" not in sentences("docs/design.md")} == set()


@pytest.mark.parametrize("name", [name for name in READ_ELSEWHERE if name in ALL_DOCUMENTS])
def test_pages_with_tests_of_their_own(name):
    """Some test reads the page."""
    page = Path(name).name
    assert any(page in path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*/test_*.py"))
