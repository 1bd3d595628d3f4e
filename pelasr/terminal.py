"""Between a verb and who typed it: names of options, standard streams, and errors in one line each."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pelasr.errors import PelasrError, brief

INTERRUPTED = 130  # exit code of what Ctrl-C ended


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """The same with underscores for the dashes in names of options: `--exp-dir` is `--exp_dir`."""
    found = list(arguments)
    end = found.index("--") if "--" in found else len(found)
    for number, argument in enumerate(found[:end]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            found[number] = f"--{name.replace('-', '_')}{equals}{value}"
    return found


def split_words(option: str, words: str) -> list[str]:
    """The words of an option such as `--langs "hi ur"`. Raises PelasrError for one that comes twice."""
    found = words.split()
    if again := next((word for n, word in enumerate(found) if word in found[:n]), None):
        raise PelasrError(f"{option} {words!r}: {again!r} comes twice; name it once")
    return found


@contextmanager
def at_terminal(resumes: bool = False) -> Iterator[None]:
    """Run what is inside for a person at a terminal.

    What they can mend ends it in one line: a PelasrError, and what the system refuses (a full disk, permissions), with
    the file. A bug shows a traceback. Ctrl-C ends it with exit code 130, and with how far it came, if that is known;
    `resumes`: the same command goes on there.
    """
    _open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows no Devanagari is shown its code points
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()  # what cannot be written is said here, not at exit
    except PelasrError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `pelasr ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left must not fail again at exit
        sys.exit(1)
    except OSError as error:
        sys.exit(f"error: {_where(error)}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        how_far = "; the same command goes on where it was" if resumes else f"; {interrupt}" if str(interrupt) else ""
        print(f"interrupted{how_far}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _open_closed() -> None:
    """Open closed standard streams (`<&-`) on nothing, so that no file takes their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - as long as the process
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _where(error: OSError) -> str:
    """The file that an error is about, if it is known (see `files.naming`)."""
    name = error.filename2 or error.filename
    if name is None and not _takes_output():
        name = "standard output"
    return "" if name is None else f"{brief(name, 300)}: "


def _takes_output() -> bool:
    """Whether standard output can be written to, which a newline tells: after an error it does no harm."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True
