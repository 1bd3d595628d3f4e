"""The facts about commit, versions and machine, and the times of runs."""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pelasr.errors import PelasrError
from pelasr.score.environment import commit, environment, read_environment, recorded, write_environment
from pelasr.stages.table import read_times


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit(tmp_path):
    assert commit(tmp_path) == "unknown"
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")  # a tag must not replace the hash
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"


def test_results_pages_are_no_change(tmp_path):
    git(tmp_path, "init", "-q")
    pages = [tmp_path / "egs/mini/asr1" / name for name in ("RESULTS.md", "RESULTS.png", "RESULTS_dev.md", "run.sh")]
    pages[0].parent.mkdir(parents=True)
    for path in pages:
        path.write_text("1")
    git(tmp_path, "add", "egs")
    git(tmp_path, "commit", "-q", "-m", "pages")
    head = git(tmp_path, "rev-parse", "HEAD")
    for path in pages[:3]:
        path.write_text("2")
        assert commit(tmp_path) == commit(pages[0].parent) == head
    pages[3].write_text("2")
    assert commit(tmp_path) == commit(pages[0].parent) == f"{head}-dirty"


def test_environment(tmp_path):
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["espnet"].isdigit() and int(facts["cores"]) > 0 and facts["cpu"]
    assert read_environment(tmp_path / "environment.json") == {}
    write_environment(tmp_path / "environment.json")
    assert read_environment(tmp_path / "environment.json") | {"date": ""} == facts | {"date": ""}
    (tmp_path / "environment.json").write_text('{"date": "2026')
    with pytest.raises(PelasrError, match="environment.json: not valid JSON"):
        read_environment(tmp_path / "environment.json")


def test_paths_in_the_repository_are_recorded_as_seen_from_here(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root / "egs/mini_indic/asr1")
    given = ["--config", str(root / "conf/ssl_mini.yaml"), "--data_dir", "/elsewhere/data", "--exp_dir", "exp"]
    with recorded(tmp_path / "times.jsonl", "stats", ["stats", *given]):
        pass
    line = json.loads((tmp_path / "times.jsonl").read_text().splitlines()[0])
    wanted = "--config ../../../conf/ssl_mini.yaml --data_dir /elsewhere/data --exp_dir exp"
    assert line["command"] == f"pelasr stats {wanted}"


def test_runs_are_recorded_however_they_end(tmp_path):
    path = tmp_path / "exp/times.jsonl"

    def run(stage, end, path=path):
        with recorded(path, stage, [stage, "--exp", "A 1"]) as outcome:
            end(outcome)

    def fail(error):
        def end(outcome):
            raise error

        return end

    run("data", lambda outcome: None)
    assert not path.parent.exists()  # a misspelt folder is not made
    path.parent.mkdir()
    run("tokens", lambda outcome: outcome.update(outcome="done"))
    run("stats", lambda outcome: None)
    for stage, error in (("train", PelasrError("x")), ("decode", KeyboardInterrupt())):
        with pytest.raises(type(error)):
            run(stage, fail(error))
    if (child := os.fork()) == 0:
        run("adapt", lambda outcome: os.kill(os.getpid(), signal.SIGKILL))
    os.waitpid(child, 0)
    found = read_times(path)
    shown = [(line["stage"], line.get("outcome"), "seconds" in line) for line in found]
    assert shown[:3] == [("tokens", "done", True), ("train", "error", True), ("decode", "interrupted", True)]
    assert shown[3:] == [("adapt", None, False)]  # killed; `stats` had nothing to do
    assert found[0]["command"] == "pelasr tokens --exp 'A 1'" and found[0]["max_rss_mb"] > 0
    with open(path, "a") as stream:
        stream.write('{"stage": "tr')
    with pytest.raises(PelasrError, match="times.jsonl:10: not a run of a stage; remove the line"):
        read_times(path)


@pytest.mark.parametrize(("given", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_do_not_spin(given, found):
    """Unless they are told to: the variable is there before torch is."""
    code = "import pelasr, os, sys; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run([sys.executable, "-c", code], env=others | given, capture_output=True, text=True)
    assert done.stdout.split() == [found, "False"], done.stderr
