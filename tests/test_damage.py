"""Damage between stages: each file that a stage wrote is deleted, emptied, cut off, altered or made something else, and
the stages are run again. Each ends in a line that names the file, or the figures are those of before."""

import shutil
from pathlib import Path

import pytest

from pelasr.cli.main import main
from pelasr.score.results import latest, read_results

LANGS = ["--langs", "hi ta"]
SIZES = [
    "--encoder_conf num_layers=2 --encoder_conf hidden_size=8 --encoder_conf output_size=6",
    "--decoder_conf hidden_size=8 --decoder_conf output_size=6 --joint_net_conf joint_space_size=6",
]
CONFIG = [*" ".join(SIZES).split(), "--max_epoch", "2", "--val_interval", "1", "--keep_nbest_models", "2"]
ROOT = Path(__file__).parents[1]
ADAPTER = str(ROOT / "conf/adapter/houlsby_mini.yaml")
FIT = ["--max_epoch", "2", "--epoch_steps", "0", "--adapter_conf", "bottleneck=3"]
STAGES = [
    ["tokens", *LANGS],
    ["stats", *LANGS, "--nj", "1"],
    ["train", *LANGS, "--exp", "A1", "--config", str(ROOT / "conf/rnnt_mini.yaml"), *CONFIG],
    ["adapt", *LANGS, "--exp", "A5", "--adapter", ADAPTER, *FIT],
    ["decode", *LANGS, "--exp", "A1"],
    ["decode", *LANGS, "--exp", "A5"],
    ["score", *LANGS, "--exps", "A1 A5", "--recipe", "r"],
    ["table", *LANGS, "--recipe", "r"],
]
EXPERIMENTS = "A1: {description: a backbone}\nA5: {description: adapters, adapt: A1, compare: A1}\n"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"x")
    content[2 * len(content) // 3] ^= 4
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": cut,
    "a bit flipped": flip,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": folder,
}
FEATURES = ["feats.ark", "feats.scp", "utt2num_frames", "utt2checksum", "done.json"]
FILES = [
    *(f"dump/{name}/{file}" for name in ("train_hi", "test_hi") for file in FEATURES),
    "exp/stats.npz",
    "exp/.done/stats.json",
    "exp/tokens/tokens.txt",
    "exp/A1/backbone.safetensors",
    "exp/A1/backbone.yaml",
    "exp/A1/tokens/tokens.txt",
    "exp/A1/train.json",
    "exp/A1/facts.json",
    "exp/A1/history.json",
    "exp/A5/model.yaml",
    "exp/A5/fit_hi_ta/adapt.json",
    "exp/A5/fit_hi_ta/history.json",
    "exp/A5/packs/hi/pack.yaml",
    "exp/A5/packs/hi/pack.safetensors",
    *(f"exp/A5/decode/test_ta/{file}" for file in ("text", "scores", "limited", "done.json")),
    "exp/results.jsonl",
    "exp/times.jsonl",
    "exp/environment.json",
    "exp/corpus.json",
]


def run(stages=STAGES) -> str:
    """The error that a stage ended with, if any did."""
    try:
        for stage in stages:
            main(stage)
    except SystemExit as end:
        return str(end.code)
    return ""


def figures() -> dict:
    return {key: line["value"] for key, line in latest(read_results("exp/results.jsonl")).items()}


def hypotheses() -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(Path("exp").glob("A*/decode/*/text"))}


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory) -> Path:
    """A recipe of seconds after its last stage."""
    place = tmp_path_factory.mktemp("finished")
    for name in ("data", "dump"):
        shutil.copytree(prepared / name, place / name)
    (place / "conf").mkdir()
    (place / "conf/experiments.yaml").write_text(EXPERIMENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert not run()
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_done_again(place):
    before = {path: path.stat().st_mtime_ns for path in [*Path("dump").rglob("*"), *Path("exp/A1").glob("*")]}
    assert not run() and figures() and len(hypotheses()) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_all_files_are_named(place):
    """What stages write is in the list above, or of the same kind as something there, or made by nothing that reads."""
    known = {Path(file).name for file in FILES} | {"tokens.json", "RESULTS.md", "RESULTS.png", "curves.png"}
    known |= {"score.tsv", "result.txt", "cost.json", "adapt.lock", "train.lock", ".lock"}
    written = {path.name for top in ("dump", "exp") for path in Path(top).rglob("*") if path.is_file()}
    left = {name for name in written - known if not name.startswith("events.") and not name[:3].isdecimal()}
    assert not left


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_damage(place, file, damage):
    wanted, texts = figures(), hypotheses()
    DAMAGE[damage](Path(file))
    error = run()
    if error:
        assert "\n" not in error and (f"{file}:" in error or f"{Path(file).parent}:" in error), error
    else:
        assert figures() == wanted and hypotheses() == texts
    print(f"{file} {damage}: {error or 'the same figures'}")
