"""The recipe's command, all stages on a corpus of seconds: what a user types first."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pelasr
from pelasr.data.kaldi import read_data_dir
from pelasr.score.results import KEYS, read_results
from pelasr.stages.table import read_times

ROOT = Path(__file__).parents[2]
RUN = ROOT / "egs/mini_indic/asr1/run.sh"
OPTIONS = ["--size", "test", "--langs", "hi ur", "--ngpu", "0", "--nj", "1", "--val_interval", "1"]
OPTIONS += ["--max_epoch", "2", "--adapt_max_epoch", "1", "--batch_size", "8", "--warmup_steps", "2"]
OPTIONS += ["--encoder_conf", "hidden_size=32", "--encoder_conf", "output_size=32"]


@pytest.fixture(scope="module")
def run(warm) -> Callable[..., subprocess.CompletedProcess]:
    """Run the recipe in a folder, with options."""

    def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
        places = [part for name in ("data", "dump", "exp") for part in (f"--{name}_dir", str(folder / name))]
        command = ["bash", str(RUN), *places, *options]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | warm.environment)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("mini_indic")
    done = run(folder, *OPTIONS, "--exps", "A1 A5")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def test_from_nothing_to_the_table(finished):
    folder, done = finished
    results = read_results(folder / "exp/results.jsonl")
    assert all(list(line) == KEYS for line in results)
    figures = {(line["experiment"], line["language"], line["metric"]) for line in results}
    expected = {(e, lang, m) for e in ("A1", "A5") for lang in ("hi", "ur", "mean") for m in ("wer", "cer")}
    assert figures == expected | {("A5", lang, "wer_minus_A1") for lang in ("hi", "ur", "mean")}
    assert "WER % test" in done.stdout
    page = (folder / "exp/RESULTS.md").read_text(encoding="utf-8")
    assert "synthetic" in page and "Kannan et al. 2019" in page
    assert page.index("## WER") < page.index("## The corpus") < page.index("## How these numbers were made")
    assert "`--size test --later pa`" in page and "| hi | 12, 0.0037 h, 12 speakers |" in re.sub(" +", " ", page)
    assert (folder / "exp/RESULTS.png").stat().st_size > 5000
    assert (folder / "exp/A1/curves.png").exists()
    runs = read_times(folder / "exp/times.jsonl")
    assert all(run["outcome"] == "done" and run["seconds"] >= 0 for run in runs)
    stages = [run["stage"] for run in runs]
    assert stages == ["data", "tokens", "stats", "train", "adapt", "decode", "decode", "score"]


def test_hypotheses_are_kaldi_text_of_every_utterance(finished):
    folder, _ = finished
    for experiment in ("A1", "A5"):
        for language in ("hi", "ur"):
            output = folder / f"exp/{experiment}/decode/test_{language}"
            ids = [line.split()[0] for line in (output / "text").read_text(encoding="utf-8").splitlines()]
            wanted = (folder / f"data/test_{language}/text").read_text(encoding="utf-8").splitlines()
            assert ids == [line.split()[0] for line in wanted]
            assert all(float(line.split()[1]) < 0 for line in (output / "scores").read_text().splitlines())


def test_audio_files_are_transcribed_as_in_stage_6(finished):
    folder, _ = finished
    for experiment in ("A1", "A5"):
        model = pelasr.load(folder / "exp" / experiment)
        training = model.backbone.description.training
        sets = [read_data_dir(folder / f"data/train_{language}") for language in ("hi", "ur")]
        assert training["utterances"] == sum(map(len, sets)) and training["hours"] > 0
        for language in ("hi", "ur"):
            files = [utterance.audio for utterance in read_data_dir(folder / f"data/test_{language}")]
            lines = (folder / f"exp/{experiment}/decode/test_{language}/text").read_text(encoding="utf-8").splitlines()
            assert model.decode(files, language) == [line.partition(" ")[2] for line in lines]


def test_the_second_run_skips_what_is_finished(finished, run):
    folder, _ = finished
    page = (folder / "exp/RESULTS.md").read_text(encoding="utf-8")
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = run(folder, *OPTIONS, "--exps", "A1 A5")
    assert again.returncode == 0
    for what in ("valid already", "tokens.txt is made already", "statistics are made already", "trained already"):
        assert what in again.stdout
    assert again.stdout.count("decode is made already") == 2
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    results = read_results(folder / "exp/results.jsonl")
    assert len(results) == 15  # the same figures are not appended again
    assert page.splitlines()[0] == (folder / "exp/RESULTS.md").read_text(encoding="utf-8").splitlines()[0]


def test_one_language_is_fitted_by_itself(finished, run):
    folder, _ = finished
    hindi, urdu = ((folder / f"exp/A5/packs/{name}/pack.safetensors").read_bytes() for name in ("hi", "ur"))
    before = (folder / "exp/A5/decode/test_hi/text").read_bytes()
    done = run(
        folder,
        "--stage",
        "5",
        "--exps",
        "A5",
        "--langs",
        "ur",
        "--adapt_max_epoch",
        "2",
        "--adapt_optim_conf",
        "lr=0.01",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "exp/A5/packs/hi/pack.safetensors").read_bytes() == hindi
    assert (folder / "exp/A5/decode/test_hi/text").read_bytes() == before
    assert (folder / "exp/A5/fit_ur/history.json").exists()
    again = run(folder, *OPTIONS, "--exps", "A1 A5", "--stage", "5")
    assert again.returncode == 0, again.stderr[-2000:]
    assert (folder / "exp/A5/packs/ur/pack.safetensors").read_bytes() == urdu


def test_a_new_language_is_one_command_and_changes_nothing(finished, run):
    folder, _ = finished
    old = [f"exp/A5/decode/test_{name}/text" for name in ("hi", "ur")]
    old += [f"exp/A5/packs/{name}/pack.safetensors" for name in ("hi", "ur")] + ["exp/A1/backbone.safetensors"]
    before = {path: (folder / path).read_bytes() for path in old}
    new = ["--stage", "5", "--exps", "A1 A5", "--langs", "pa", "--adapt_max_epoch", "2", "--adapt_epoch_steps", "2"]
    done = run(folder, *new, "--forgetting", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pa: new to the backbone" in done.stdout and "tokens of its own (tokens: auto)" in done.stdout
    assert before == {path: (folder / path).read_bytes() for path in old}
    results = {(r["experiment"], r["language"], r["metric"]): r for r in read_results(folder / "exp/results.jsonl")}
    assert results["A5", "pa", "wer"]["utterances"] == 6 and ("A1", "pa", "wer") in results
    backbone, pa = results["A1", "pa", "wer"]["total_parameters"], results["A5", "pa", "wer"]
    assert pa["total_parameters"] == backbone + pa["trainable_parameters"]
    assert results["A5", "mean", "wer"]["utterances"] == 12  # the mean is over the recipe's languages
    for language in ("hi", "ur"):
        for metric in ("changed_by_pa", "logits_changed_by_pa"):
            assert results["A5", language, metric]["value"] == 0
    page = (folder / "exp/RESULTS.md").read_text(encoding="utf-8")
    assert "## Added later: pa" in page and "0 hypotheses changed" in page
    again = run(folder, *new)
    assert again.returncode == 0 and "the adapters of pa in" in again.stdout


def test_a_language_without_data_is_refused(finished, run):
    folder, _ = finished
    done = run(folder, "--stage", "5", "--langs", "pn", "--exps", "A5")
    assert done.returncode != 0 and "train_pn" in done.stderr and "Traceback" not in done.stderr


def test_dry_run_prints_the_commands_and_does_nothing(tmp_path, run):
    done = run(tmp_path, "--dry_run", "true", "--exps", "all")
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    lines = done.stdout.splitlines()
    assert sum("'train'" in line for line in lines) == sum("'decode'" in line for line in lines) == 6
    done = run(tmp_path, "--dry_run", "true", "--exps", "A5", "--stage", "5", "--langs", "hi pa")
    assert [line for line in done.stdout.splitlines() if "'add'" in line and "'--fit_langs' 'pa'" in line]
    done = run(
        tmp_path, "--dry_run", "true", "--dump", "false", "--langs", "hi", "--fit_langs", "hi pa", "--exps", "A5"
    )
    undumped = [line.split()[1] for line in done.stdout.splitlines() if "'--dump' 'false'" in line]
    assert undumped == ["'stats'", "'add'"]


def printed(folder: Path, recipe: str, *options: str) -> list[list[str]]:
    """The commands that a recipe would run, typed in a folder."""
    command = ["bash", str(ROOT / "egs" / recipe / "run.sh"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_dashes_equal_signs_and_options_without_a_value(tmp_path):
    wanted = ["--dry_run", "true", "--stage", "5", "--stop_stage", "6", "--langs", "hi ur", "--max_epoch", "3"]
    alike = ["--dry-run", "--stage=5", "--stop-stage=6", "--langs=hi ur", "--max-epoch=3"]
    commands = printed(tmp_path, "mini_indic/asr1", *wanted)
    assert commands == printed(tmp_path, "mini_indic/asr1", *alike)
    assert {command[1] for command in commands if command[0] == "pelasr"} == {"adapt", "decode"}
    more = printed(tmp_path, "mini_indic/asr1", "--optim-conf=lr=0.1", "--optim_conf", "eps=1", "--dry_run=true")
    assert any(command[-4:] == ["--optim_conf", "lr=0.1", "--optim_conf", "eps=1"] for command in more)
    assert list(tmp_path.iterdir()) == []


def test_paths_are_seen_from_where_one_types(tmp_path):
    """Those that are given; the defaults are in the recipe's folder, and a path that begins with / is what it says."""

    def of(verb: str, *options: str) -> dict[str, str]:
        words = next(words for words in printed(tmp_path, "mini_indic/asr1", "--dry_run", *options) if words[1] == verb)
        return dict(zip(words[2::2], words[3::2], strict=True))

    (tmp_path / "my.yaml").touch()
    places = [f"--{name}=my/{name}" for name in ("data-dir", "dump-dir", "exp-dir")]
    adapt = of("adapt", "--adapter=my.yaml", "--experiments=my/e.yaml", *places)
    assert [adapt[f"--{name}"] for name in ("adapter", "experiments", "data_dir", "dump_dir", "exp_dir")] == [
        f"{tmp_path}/{path}" for path in ("my.yaml", "my/e.yaml", "my/data-dir", "my/dump-dir", "my/exp-dir")
    ]
    assert of("train", "--config", "my/c.yaml")["--config"] == f"{tmp_path}/my/c.yaml"
    assert of("table", *places)["--output"] == f"{tmp_path}/my/exp-dir/RESULTS.md"
    table = of("table", "--results", "R.md", "--exp_dir", "/x")
    shown = [table[f"--{name}"] for name in ("output", "exp_dir", "data_dir", "experiments")]
    assert shown == [f"{tmp_path}/R.md", "/x", "data", "conf/experiments.yaml"]
    assert of("table")["--output"] == "exp/RESULTS.md"
    path = ROOT / "egs/mini_indic/asr1" / of("adapt", "--adapter", "lora_mini")["--adapter"]
    assert path.samefile(ROOT / "conf/adapter/lora_mini.yaml")


CORPORA = [("fsdd/asr1", "fsdd"), ("mboshi/asr1", "mboshi"), ("mboshi/st1", "mboshi"), ("must_c/st1", "must_c")]


@pytest.mark.parametrize(("recipe", "name"), CORPORA)
def test_the_folder_of_a_corpus_too(tmp_path, recipe, name):
    command = printed(tmp_path, recipe, "--dry_run", f"--{name.replace('_', '-')}", "my corpus")[1]
    assert command[:4] == ["python", "local/data.py", f"--{name}", f"{tmp_path}/my corpus"]
    assert f"--{name}" not in printed(tmp_path, recipe, "--dry_run")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lnags", "hi"], "unknown key 'lnags'"),
        (["--max_epochs", "3"], "did you mean 'max_epoch'?"),
        (["--stgae", "5"], "unknown key 'stgae'; did you mean --stage?"),
        (["--stage", "--langs", "hi"], "--stage: a value is missing"),
        (["--stage", "five"], "--stage: 'five' is no whole number"),
        (["--dry_run", "yes"], "--dry_run: 'yes': true or false"),
        (["--forgetting", "yes"], "--forgetting: 'yes': true or false"),
        (["--adapt_bottleneck", "3"], "unknown key 'bottleneck'"),
        (["--stage"], "a value is missing"),
        (["7"], "unexpected argument '7'"),
        (["--train_dir", "x", "--stage", "5", "--langs", "ur"], "go with stage 5 and one new language"),
        (["--train_dir", "x", "--stage", "6", "--fit_langs", "pa"], "go with stage 5 and one new language"),
        (["--train_dir", "x", "--fit_langs", "pa si"], "go with stage 5 and one new language"),
        (["--forgetting", "true"], "goes with new languages in --fit_langs"),
        (["--exps", "A9", "--stage", "4"], "no experiment 'A9'"),
        (["--langs", "xx", "--size", "test"], "no such language: xx"),
    ],
)
def test_a_wrong_option_is_one_clear_line(tmp_path, options, message, run):
    done = run(tmp_path, *options)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_lists_the_options():
    done = subprocess.run(["bash", str(RUN), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for option in ("stage", "stop_stage", "exps", "langs", "size", "ngpu", "nj", "seed", "dry_run", "skip_bad"):
        assert f"--{option} " in done.stdout


def test_hypotheses_of_another_model_are_not_scored(finished, run):
    folder, _ = finished
    fit = ["--stage", "5", "--stop_stage", "5", "--exps", "A5", "--langs", "ur", "--adapt_max_epoch", "1"]
    for name in ("fit_ur", "packs/ur"):  # of a run with other settings
        shutil.rmtree(folder / "exp/A5" / name)
    assert run(folder, *fit, "--adapt_optim_conf", "lr=0.02").returncode == 0
    stale = run(folder, "--stage", "7", "--exps", "A1 A5")
    assert stale.returncode != 0
    assert "A5: test_ur was not decoded with this model, data and beam; run stage 6" in stale.stderr
