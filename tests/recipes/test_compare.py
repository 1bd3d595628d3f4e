"""Methods, learning rates and seeds from the recipe's command line, on a corpus of seconds."""

import os
import subprocess
from pathlib import Path

import pytest
from result_lines import rows

from pelasr.score.results import TOTAL, latest, read_results

RUN = Path(__file__).parents[2] / "egs/mini_indic/asr1/run.sh"
SMALL = ["--size", "test", "--langs", "hi ur", "--ngpu", "0", "--nj", "1", "--val_interval", "1", "--max_epoch", "1"]
SMALL += ["--batch_size", "8", "--encoder_conf", "hidden_size=32", "--encoder_conf", "output_size=32"]
CONTENT = """
adapt: A1
baseline: A1
shared: {{max_epoch: 1, batch_size: 8, warmup_steps: 1}}
methods:
  houlsby: {{adapter: houlsby, adapter_conf: {{bottleneck: 4}}, lr: [{rates}]}}
  lora: {{adapter: lora, adapter_conf: {{sites: joint, rank: {rank}}}, lr: 0.01}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def compare(folder, warm):
    def compare(*options: str, rates: str = "0.0001, 0.01", rank: str = "2") -> subprocess.CompletedProcess:
        (folder / "c.yaml").write_text(CONTENT.format(rates=rates, rank=rank))
        places = [part for name in ("data", "dump", "exp") for part in (f"--{name}_dir", str(folder / name))]
        command = ["bash", str(RUN), *places, "--comparison", str(folder / "c.yaml"), "--jobs", "2", *options]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | warm.environment)

    return compare


def figures(folder):
    return {key[:1] + key[2:]: line for key, line in latest(read_results(folder / "exp/results.jsonl")).items()}


def test_two_methods_two_rates_and_two_seeds(folder, compare):
    done = compare(*SMALL, "--adapters", "all", "--seeds", "3 0")
    assert done.returncode == 0, done.stderr[-3000:]
    found = figures(folder)
    for name in ("A1", "houlsby", "lora"):
        values = [found[each, "hi", "cer"] for each in (name, f"{name}.seed0")]
        assert [line["seed"] for line in values] == [3, 0]
        mean = found[f"{name}.seeds", "hi", "cer"]
        assert mean["seed"] == [3, 0] and mean["value"] == pytest.approx(sum(v["value"] for v in values) / 2, abs=1e-3)
        assert mean["lo"] <= mean["value"] <= mean["hi"]
    assert ("houlsby.seeds", "mean", "wer_minus_A1.seeds") in found
    assert found["houlsby.seed0", TOTAL, "lr"]["value"] == found["houlsby", TOTAL, "lr"]["value"]
    assert {key[2] for key in found if key[2].startswith("dev_")} == {
        f"dev_wer_at_lr_{rate}" for rate in ("0.0001", "0.01")
    }
    page = (folder / "exp/RESULTS_methods.md").read_text(encoding="utf-8")
    assert rows(page, "## Costs")["houlsby"][-1] == "3 0" and rows(page, "## Costs")["A1"][-3] == "1.00"
    assert (
        set(rows(page, "## WER")) >= {"A1", "houlsby", "lora"} and "houlsby.seed0" not in page.split("## The corpus")[0]
    )
    assert (folder / "exp/RESULTS_methods.png").stat().st_size > 5000 and not (folder / "exp/RESULTS.md").exists()


def test_again_nothing_and_of_a_larger_grid_what_is_new(folder, compare):
    again = ["--stage", "5", "--adapters", "houlsby", "--seeds", "3 0", "--stop_stage", "5"]
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    done = compare(*again)
    assert done.returncode == 0 and "training" not in done.stderr, done.stderr[-3000:]
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    done = compare(*again, rates="0.0001, 0.01, 1e-9")
    assert done.returncode == 0, done.stderr[-3000:]
    new = {
        path.relative_to(folder / "exp/houlsby").parts[0]
        for path in (folder / "exp/houlsby").rglob("*.safetensors")
        if path not in stamps
    }
    assert new == {"lr_1e-09"}


def test_the_page_of_experiments_has_no_methods(folder, compare):
    done = compare("--stage", "7", "--exps", "A1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(rows((folder / "exp/RESULTS.md").read_text(encoding="utf-8"), "## WER"))[1:] == ["A1"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_method_that_fails_does_not_keep_the_others(folder, compare, jobs):
    """A rank that there is not; the other is fitted with a rate that is new, and the last line says which failed."""
    rate = {"1": "0.02", "2": "0.03"}[jobs]
    rest = ["--stage", "5", "--stop_stage", "5", "--adapters", "lora houlsby", "--jobs", jobs]
    done = compare(*rest, rates=rate, rank="-1")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{RUN}: failed: lora; the reason stands above")
    assert (folder / f"exp/houlsby/lr_{float(rate):g}/packs/hi/pack.yaml").exists()
    assert all(line is not None for line in read_results(folder / "exp/results.jsonl"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adapters", "lira"], "no method 'lira'"),
        (["--seeds", "0 x"], "--seeds '0 x': 'x' is no whole number"),
        (["--seeds", "1 1"], "1 comes twice"),
        (["--seed", "1", "--seeds", "0 1"], "--seed 1 --seeds '0 1': one of them"),
        (
            ["--adapters", "lora", "--stage", "5", "--exp_dir", "/nowhere"],
            "/nowhere/A1: no backbone yet for lora: run st",
        ),
    ],
)
def test_errors_come_first(compare, options, said):
    done = compare(*options)
    assert done.returncode != 0 and said in done.stderr and "stage" not in done.stdout
    assert len(done.stderr.splitlines()) == 1
