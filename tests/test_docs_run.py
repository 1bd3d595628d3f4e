"""The recipes' and benches' commands of the documents, run in their order as they are written, in a clone whose
corpora and configurations are tiny: about half an hour on 2 cores."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
import yaml
from doc_clone import INDIC
from doc_commands import RUNS, bench, data_alone, recipe
from documents import ROOT
from must_c import make_must_c
from tiny_pretrained import save_mms, save_model
from tiny_speech import noise

pytestmark = pytest.mark.slow
NOT_HERE = ("srun", "run.sh --ngpu N", "--lm ")  # a cluster; no command but a form of one; KenLM, and its models
SIDE = {"output_size": 16, "attention_heads": 2, "linear_units": 16, "num_blocks": 1}
OTHER_SIZES = ("batch_frames", "accum_grad", "num_workers", "val_interval", "keep_last_models", "keep_nbest_models")
TINY = {
    "encoder_conf": {"num_layers": 2, "hidden_size": 16, "output_size": 16},
    "decoder_conf": {"hidden_size": 16, "output_size": 16},
    "joint_net_conf": {"joint_space_size": 16},
    "subsampler_conf": {"channels": 16},
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    for pattern in ("conf/*.yaml", "conf/adapter/*.yaml", "conf/comparison/*.yaml", "egs/*/*/conf/*.yaml"):
        for path in folder.glob(pattern):
            shrink(path)
    for path in folder.glob("egs/*/*/run.sh"):
        text = re.sub(r"^size=.*", "size=test", path.read_text(), flags=re.MULTILINE)
        sizes = {"must_c": 40, "mboshi": 20}
        for corpus, size in sizes.items():
            if corpus in str(path.relative_to(folder)):
                text = re.sub(r"^vocab_size=.*", f"vocab_size={size}", text, flags=re.MULTILINE)
        path.write_text(text)
    experiments = (folder / "egs/mini_europe/st1/conf/experiments.yaml").read_text(encoding="utf-8")
    (folder / "mine.yaml").write_text(
        experiments + "9: {adapt: 2, adapter_conf: {bottleneck: {encoder: 0, decoder: 4}}}\n"
    )
    make_corpora(folder)
    save_mms(folder / "mms-1b-all")
    save_model("wav2vec2_stable", folder / "xls-r-300m")
    return folder


def shrink(path: Path) -> None:
    """Make a configuration tiny, and its training two steps or so."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "experiments.yaml":
        for entry in config.values():
            entry.update({key: value for key, value in (("max_epoch", 1), ("epoch_steps", 1)) if key in entry})
            if "must_c" in str(path) and {"langs", "vocab_size"} & set(entry):
                entry["vocab_size"] = 28
    elif "methods" in config:
        config["shared"].update(max_epoch=1, warmup_steps=1, epoch_steps=1)
        config["shared"].pop("val_interval", None)
    elif "backbone" in config or "adapter" in config:
        config.update(max_epoch=1, warmup_steps=1, **({"epoch_steps": 1} if "adapter" in config else {}))
        for key in OTHER_SIZES:
            config.pop(key, None)
        for key, options in TINY.items():
            if key in config:
                small = SIDE if "attention_heads" in config[key] else options
                config[key].update({name: value for name, value in small.items() if name in config[key]})
        if path.name == "ssl_houlsby.yaml":
            config["adapter_conf"] = {"bottleneck": 4}  # as in the tiny MMS
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def make_corpora(folder: Path) -> None:
    """What the documents tell people to fetch, where they put it."""
    digits = folder / "free-spoken-digit-dataset/recordings"
    digits.mkdir(parents=True)
    for digit in range(3):
        for take in (0, 1, 5, 6, 10, 11, 12):
            soundfile.write(digits / f"{digit}_jackson_{take}.wav", noise(0.7, 10 * take + digit)[::2], 8000)
    mboshi = folder / "mboshi-french-parallel-corpus/full_corpus_newsplit"
    for part, count in (("train", 36), ("dev", 4)):
        (mboshi / part).mkdir(parents=True)
        for number in range(count):
            name = mboshi / part / f"abiayi_2015-09-08_Dico18_{number:02d}"
            soundfile.write(f"{name}.wav", noise(1.0, number), 16000)
            Path(f"{name}.mb.cleaned").write_text(f"wá ngá {'abc'[number % 3]}\n", encoding="utf-8")
            Path(f"{name}.fr.cleaned").write_text(f"la lampe {'xyz'[number % 3]} est éteinte\n", encoding="utf-8")
    make_must_c(folder / "DIR", [f"en-{target}" for target in ["de", "es", "fr", "it", "nl", "pt", "ro", "ru"]])


def run_here() -> list[str]:
    found = [
        text
        for text, run in RUNS.items()
        if run in (recipe, data_alone, bench) or "egs/mini_indic/asr1/exp/mms" in text
    ]
    return [text for text in found if not any(part in text for part in NOT_HERE)]


@pytest.mark.parametrize("text", run_here())
def test_it_runs(clone, text):
    if "/my/" in text:
        for name in ("train", "dev", "test"):
            shutil.copytree(clone / INDIC / f"data/{name}_pa", clone / "my" / name)
        text = text.replace("/my/", f"{clone}/my/")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    environment["PATH"] = f"{clone}/.venv/bin:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", text], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and done.stdout
