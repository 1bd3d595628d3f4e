"""Where a figure was made: commit, versions and machine."""

import json
import os
import platform
import resource
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pelasr.files import append, atomic_write, read_json
from pelasr.version import __version__

ROOT = Path(__file__).parents[2]


def _output(command: Sequence[str]) -> str:
    """What `command` prints, or nothing when the program is absent or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


PAGES = [f":(top,exclude,glob)egs/*/*/RESULTS*.{kind}" for kind in ("md", "png")]  # made of results


def commit(directory: str | Path = Path(__file__).parent) -> str:
    """Hash of the commit checked out in `directory` (this package's, if not given), with `-dirty` after it when a
    tracked file was changed since, results pages aside; `unknown` outside git."""
    git = ["git", "--no-optional-locks", "-C", str(directory)]
    head = _output([*git, "rev-parse", "HEAD"])
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", *PAGES])
    if not head:
        return "unknown"
    return f"{head}-dirty" if changed else head


def package_version(name: str) -> str:
    """Version of an installed package, or `not installed`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Date, versions, commit and machine, as text: the facts that a results page states."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "python": platform.python_version()}
    facts |= {name: package_version(name) for name in ("torch", "espnet")}
    facts |= {
        "pelasr": __version__,
        "commit": commit(),
        "host": platform.node(),
        "cpu": cpu_model(),
        "cores": str(cores),
    }
    gpus = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    return facts | ({"gpu": ", ".join(gpus)} if gpus else {})


def write_environment(path: str | Path) -> None:
    """Save `environment()` as JSON, so that a results page can be made again later with the same bytes."""
    with atomic_write(path) as stream:
        json.dump(environment(), stream, indent=2)
        stream.write("\n")


def read_environment(path: str | Path) -> dict[str, str]:
    """What `write_environment` saved; empty when there is no file."""
    return read_json(path, "delete it; stage 7 writes it again") if Path(path).exists() else {}


@contextmanager
def recorded(path: Path, stage: str, arguments: Sequence[str]) -> Iterator[dict[str, str]]:
    """Append a run of a stage, `pelasr <arguments>`, to the `times.jsonl` of a results page: a line when it begins, and
    one with time, peak memory and `outcome` when it ends, unless it is killed.

    The outcome is that which the block puts into what it is given, such as `done`; or `error` or `interrupted`. A
    folder that is not there is not made. Of several processes, as torchrun, srun and Lightning start, the first writes.
    """
    first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    started = {"started": datetime.now().astimezone().isoformat(timespec="seconds"), "host": socket.gethostname()}
    line = {"stage": stage, "command": shlex.join(["pelasr", *map(_from_here, arguments)]), **started}
    start, outcome = time.monotonic(), {"outcome": "nothing to do"}

    def write(facts: dict[str, Any]) -> None:
        if first and path.parent.is_dir():
            append(path, json.dumps(line | facts) + "\n")

    def end() -> None:
        peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        write(outcome | {"seconds": round(time.monotonic() - start, 1), "max_rss_mb": round(peak / 1024)})

    write({})
    try:
        yield outcome
    except BaseException as error:
        outcome["outcome"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
        with suppress(OSError):  # of a full disk, say: what ended the run is to be heard
            end()
        raise
    end()


def _from_here(argument: str) -> str:
    """Paths within the repository as the recipe's folder sees them, so that they hold in another clone too."""
    inside = os.path.isabs(argument) and Path(os.path.abspath(argument)).is_relative_to(ROOT)
    return os.path.relpath(argument) if inside else argument
