"""Standard streams that cannot be used, errors in one line, and Ctrl-C, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pelasr.errors import PelasrError
from pelasr.terminal import split_words

ROOT = Path(__file__).parents[1]
HEAD = "import os, sys; from pathlib import Path; from pelasr.terminal import at_terminal\nwith at_terminal({}):\n    "


def run(code: str, shell: str = "", resumes: bool = False, **environment: str) -> subprocess.CompletedProcess:
    """A line of code in `at_terminal`, with what a shell redirects."""
    command = ["bash", "-c", f'"$0" -c "$1" {shell}', sys.executable, HEAD.format(resumes) + code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nothing_and_no_file_takes_their_place(tmp_path, closed):
    code = f"print('x'); print('y', file=sys.stderr); assert open('{tmp_path}/f', 'w').fileno() > 2"
    done = run(f"assert not sys.stdin.read(); {code}", f"{'' if '<' in closed else '</dev/null'} {closed}")
    shown = "" if ">&-" in closed.split() else "x\n", "" if "2>&-" in closed else "y\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, *shown)


@pytest.mark.parametrize(
    "code", ["print('x')", "print('x', flush=True)", "print('x' * 100000); print('y', flush=True)"]
)
def test_what_cannot_be_printed_is_one_line(code):
    done = run(code, ">/dev/full")
    assert done.stderr == "error: standard output: No space left on device\n" and done.returncode == 1


def test_a_reader_that_stops_reading_is_no_error():
    code = "[print('x' * 1000) for _ in range(1000)]"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1; echo ${PIPESTATUS[0]}', sys.executable, HEAD.format("") + code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[1:] == ["1"] and done.stderr == ""


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_terminal_that_knows_no_devanagari(environment):
    code = "print(chr(0x915), chr(0x457), 'a')"
    done = run(code, **environment)
    assert (done.stdout, done.stderr, done.returncode) == ("\\u0915 \\u0457 a\n", "", 0)
    assert run(code, LC_ALL="C", PYTHONUTF8="1").stdout == "क ї a\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("open('/none/a')", "/none/a: No such file or directory"),
        ("Path('/').write_text('x')", "/: Is a directory"),
        ("os.rename('/proc/self', '/none/b')", "/none/b: "),
        ("raise PermissionError(13, 'Permission denied', 'x/y')", "x/y: Permission denied"),
        ("raise OSError('no route')", "no route"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_file(code, message):
    done = run(code)
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1 and done.returncode == 1


def test_a_bug_shows_a_traceback():
    done = run("1 / 0")
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr and done.returncode == 1


def test_interrupted():
    assert run("raise KeyboardInterrupt").stderr == "interrupted\n"
    assert run("raise KeyboardInterrupt('2 of 3 files are done')").stderr == "interrupted; 2 of 3 files are done\n"
    done = run("raise KeyboardInterrupt", resumes=True)
    assert done.stderr == "interrupted; the same command goes on where it was\n" and done.returncode == 130


def test_lists_of_words():
    assert split_words("--langs", " hi  ur ") == ["hi", "ur"] and split_words("--sets", "") == []
    with pytest.raises(PelasrError, match="^--langs 'hi ur hi': 'hi' comes twice; name it once$"):
        split_words("--langs", "hi ur hi")
