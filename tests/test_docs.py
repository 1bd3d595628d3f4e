"""Every command and code block of the documents runs as it is written, on tiny data.

Each is listed in RUNS, or BLOCKS, with how it is run; one that is not fails `test_every_block_is_listed`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import tiny_exp
from doc_commands import EUROPE, INDIC, RUNS, pelasr, torchrun
from documents import ROOT, blocks, commands
from result_lines import line as result
from tiny_exp import make_packs
from tiny_speech import RATE, make_recogniser, make_translator, noise

from pelasr.backbones.store import load_backbone
from pelasr.data.kaldi import Utterance, read_data_dir, write_data_dir
from pelasr.score.results import append_results


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone in which the recipes have been run, as far as commands look at it: links to what is not written to, and
    tiny experiments, audio and results where the documents have theirs."""
    folder = tmp_path_factory.mktemp("clone")
    for name in (".venv", "bench", "conf", "local", "setup.py", "tests", "tools"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "egs", folder / "egs", symlinks=True, ignore=shutil.ignore_patterns("data", "dump", "exp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_exp, "LANGUAGES", ["hi", "ta", "ur"])
        exp = make_recogniser(folder / INDIC / "exp").parent
    backbone = load_backbone(exp / "A1")
    shutil.rmtree(exp / "A5")  # which has other languages
    make_packs(exp / "A5", backbone, ["hi", "ta", "ur"])
    make_packs(exp / "L", backbone, ["ur"], method="lora", sites=["joint"])
    for number in (1, 2):
        make_packs(folder / f"x{number}", backbone, ["ur"], seed=number)
        (folder / f"x{number}/packs/ur").rename(folder / INDIC / f"ur{number}")
    make_translator(folder / EUROPE / "exp").rename(folder / EUROPE / "exp/4")
    values = {"hi": 9.0, "ta": 8.0, "pa": 30.0}
    append_results(exp / "results.jsonl", [result("A5", language, value) for language, value in values.items()])
    for name in ("a.wav", "b.flac", "recordings/c.wav", "talk.mp3", *(f"{INDIC}/{n}.wav" for n in "abc")):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, noise(1.0, len(name)), RATE)
    for name in ("train", "dev"):
        texts = ["ab", "cd", "ਪ ਕ"]
        audio = [f"data/{name}{number}.wav" for number in range(len(texts))]
        speech = zip(texts, audio, strict=True)
        write_data_dir(
            folder / INDIC / f"data/{name}_pa",
            [Utterance(f"u{n}", f"u{n}", path, None, None, text, "s", "pa") for n, (text, path) in enumerate(speech)],
        )
        for number, path in enumerate(audio):
            soundfile.write(folder / INDIC / path, noise(0.8, number), RATE)
    experiments = (ROOT / EUROPE / "conf/experiments.yaml").read_text(encoding="utf-8")
    (folder / "mine.yaml").write_text(experiments + next(block for block in blocks("yaml") if block.startswith("9:")))
    return folder


BLOCKS = {  # other code blocks, by their first line, and the tests that run them
    "import pelasr": "test_from_python",
    "#!/usr/bin/env bash": "test_adding_a_corpus",
    "from pelasr.data import Utterance, write_data_dir": "test_adding_a_corpus",
    "rnnt:": "test_adding_a_corpus",
    '"""pelasr/adapters/scale.py"""': "test_adding_a_method",
    "9:": "the row that `--experiments mine.yaml --rows 9` takes",
    "README.md              how to use it": "no code: the folders",
}


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


def test_parameters_are_those_of_the_text(clone, capsys, monkeypatch):
    monkeypatch.chdir(clone)
    pelasr(next(text for text in RUNS if text.startswith("pelasr params --config conf/")), clone, monkeypatch)
    printed = capsys.readouterr().out
    assert "604,800" in printed and "36,934,656" in printed


def block_of(kind: str, first: str) -> str:
    return next(block for block in blocks(kind) if block.startswith(first))


def test_from_python(clone, monkeypatch):
    """As it is written, but for the length of the training."""
    monkeypatch.chdir(clone / INDIC)
    code = block_of("python", "import pelasr\n")
    for written, here in {'"max_epoch": 60': '"max_epoch": 1', "epoch_steps=20": "epoch_steps=2"}.items():
        assert written in code
        code = code.replace(written, here)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
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


def test_adding_a_method(clone):
    """A file in the folder of the methods, of a copy of the package, and a YAML file that chooses it."""
    copy = clone / "copy"
    shutil.copytree(ROOT / "pelasr", copy / "pelasr", ignore=shutil.ignore_patterns("__pycache__"))
    code = block_of("python", '"""pelasr/adapters/scale.py"""')
    (copy / "pelasr/adapters/methods/scale.py").write_text(code)
    (copy / "scale.yaml").write_text("adapter: scale\n")
    files = ["--config", str(ROOT / "conf/rnnt_mini.yaml"), "--adapter", "scale.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pelasr", "params", *files, "--json"]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"adapter_per_language": 1920' in done.stdout  # scale and shift of three layers of 320 channels
