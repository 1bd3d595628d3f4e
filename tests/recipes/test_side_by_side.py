"""Experiments side by side: how many at a time, with what of the machine, and what becomes of failures and Ctrl-C."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
set -euo pipefail
cores=4 ngpu=0 jobs= dry_run=false threads_given=
. {root}/local/side_by_side.sh
work() {{
  echo "$1 begins ${{OMP_NUM_THREADS:-}} ${{CUDA_VISIBLE_DEVICES:-}} $ngpu"
  sleep "${{2:-0.4}}"
  echo "$1 ends"
}}
"""


def bash(script: str, **environment: str) -> subprocess.CompletedProcess:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "CUDA_"))}
    command = ["bash", "-c", HEAD.format(root=ROOT) + script]
    return subprocess.run(command, capture_output=True, text=True, env=given | environment, timeout=60)


def most_at_once(lines: list[str]) -> int:
    running, most = 0, 0
    for line in lines:
        running += {"begins": 1, "ends": -1}[line.split()[1]]
        most = max(most, running)
    return most


@pytest.mark.parametrize(("jobs", "most"), [("", 4), ("1", 1), ("2", 2), ("9", 5)])
def test_as_many_as_wanted(jobs, most):
    done = bash(f"jobs={jobs}; side_by_side work A0 A1 A2 A3 A4; echo 'all done'")
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 0 and last == "all done", done.stderr
    assert sorted(line.split()[0] for line in lines if "ends" in line) == ["A0", "A1", "A2", "A3", "A4"]
    assert most_at_once(lines) == most


def test_shares_of_cores():
    assert bash("jobs=2; side_by_side work A0 A1").stdout.count("begins 2  0") == 2
    assert bash("side_by_side work A0 A1 A2").stdout.count("begins 1  0") == 3
    assert "A0 begins   0" in bash("side_by_side work A0").stdout  # alone: as the pipeline has set it
    assert bash("threads_given=3; export OMP_NUM_THREADS=3; side_by_side work A0 A1").stdout.count("begins 3") == 2


def test_shares_of_gpus():
    assert "A0 begins   4" in bash("ngpu=4; side_by_side work A0 A1").stdout  # one after the other, on all
    found = bash("ngpu=4 jobs=2; side_by_side work A0 A1").stdout
    assert "A0 begins  0,1 2" in found and "A1 begins  2,3 2" in found
    found = bash("ngpu=2 jobs=4; side_by_side work A0 A1 A2", CUDA_VISIBLE_DEVICES="5,7").stdout
    assert "A0 begins  5 1" in found and "A1 begins  7 1" in found and most_at_once(found.splitlines()) == 2


def test_a_slot_that_is_free_is_used_again():
    """The third waits for the first, which is shorter than the second."""
    script = "timed() { case $1 in A1) work A1 2;; *) work $1 0.1;; esac; }; jobs=2; side_by_side timed A0 A1 A2 A3"
    lines = bash(script).stdout.splitlines()
    assert lines[-1] == "A1 ends"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_one(jobs):
    """The others go on to their end, side by side; the pipeline then stops."""
    done = bash(f"fail() {{ [ $1 != A0 ] || exit 3; work $1; }}; jobs={jobs}; side_by_side fail A0 A1; echo 'all done'")
    assert done.returncode != 0 and "all done" not in done.stdout
    assert ("A1 ends" in done.stdout) == (jobs == 2)


def test_a_failure_at_once_is_one():
    """Also of one whose slot another has taken since."""
    ended = 'kill() { sleep 0.3; builtin kill "$@"; };'  # so that A0 is over when a slot for A1 is looked for
    done = bash(
        f"{ended} fail() {{ [ $1 != A0 ] || exit 3; work $1; }}; jobs=2; side_by_side fail A0 A1; echo 'all done'"
    )
    assert done.returncode != 0 and "all done" not in done.stdout and "A1 ends" in done.stdout


def test_dry_run_is_in_order():
    assert bash("dry_run=true; side_by_side echo A0 A1 A2").stdout.split() == ["A0", "A1", "A2"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(how):
    """What runs is interrupted as by Ctrl-C, so that it can say what to do, and nothing goes on alone."""
    work = "trap 'echo interrupted; exit 1' INT; while :; do sleep 0.1; done"
    script = HEAD.format(root=ROOT) + f'child() {{ bash -c "{work}"; }}; side_by_side child A0 A1'
    process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(1)
    os.kill(process.pid, how)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130 and output.count("interrupted") == 2
