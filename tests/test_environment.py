"""The facts about commit, versions and machine."""

import platform
import subprocess

from pelasr.environment import commit, environment, read_environment, write_environment


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


def test_environment(tmp_path):
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["espnet"].isdigit() and int(facts["cores"]) > 0 and facts["cpu"]
    assert read_environment(tmp_path / "environment.json") == {}
    write_environment(tmp_path / "environment.json")
    assert read_environment(tmp_path / "environment.json") | {"date": ""} == facts | {"date": ""}
