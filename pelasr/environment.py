"""Where a figure was made: commit, versions and machine."""

import json
import os
import platform
import resource
import shlex
import shutil
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pelasr import __version__
from pelasr.files import atomic_write, read_json


def _output(command: Sequence[str]) -> str:
    """What `command` prints, or nothing when the program is absent or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit(directory: str | Path = Path(__file__).parent) -> str:
    """Hash of the commit checked out in `directory` (this package's, if not given), with `-dirty` after it when a
    tracked file was changed since; `unknown` outside git."""
    describe = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return _output(describe) or "unknown"


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
    path = Path(path)
    return read_json(path) if path.exists() else {}


def record_time(path: Path, stage: str, arguments: Sequence[str], seconds: float, started: str) -> None:
    """Append a run of a stage, `pelasr <arguments>`, with its peak memory, to the `times.jsonl` of a results page."""
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    line = {
        "stage": stage,
        "command": shlex.join(["pelasr", *arguments]),
        "seconds": round(seconds, 1),
        "max_rss_mb": round(peak / 1024),
        "started": started,
        "host": socket.gethostname(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
