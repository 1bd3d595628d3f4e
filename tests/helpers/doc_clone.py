"""A clone in which the commands of the documents can be typed."""

import shutil
from pathlib import Path

import pytest
import soundfile
import tiny_exp
from documents import ROOT, blocks
from result_lines import line as result
from tiny_exp import make_packs
from tiny_pretrained import save_mms, save_model
from tiny_speech import RATE, make_recogniser, make_translator, noise

from pelasr.backbones.store import load_backbone
from pelasr.data.kaldi import Utterance, write_data_dir
from pelasr.score.results import append_results

INDIC, EUROPE = "egs/mini_indic/asr1", "egs/mini_europe/st1"


def make_clone(folder: Path) -> None:
    """Make a folder a clone in which the recipes have been run, as far as commands look at it: links to what is not
    written to, and tiny experiments, audio and results where the documents have theirs."""
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
    save_mms(folder / "mms-1b-all")
    save_model("wav2vec2_stable", folder / "xls-r-300m")
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
