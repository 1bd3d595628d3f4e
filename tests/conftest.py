"""How tests share the machine, and the fixtures of many of them: tiny models, batches of noise, a prepared corpus."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import ROOT
from warm import Warm

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; a process a core is faster than threads
# Files of tests that take longest, longest first: whoever begins with them waits least at the end.
LONG = ["adapters/test_matrix", "test_damage", "train/test_loop", "stages/test_adapt", "recipes/test_recipe"]
LONG += ["recipes/test_recipe_st", "test_threads", "test_docs", "test_model", "nn/test_espnet"]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core; none for the slow tests, whose recipes use all cores by themselves."""
    return 0 if config.option.markexpr == "slow" else len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / f"tests/{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def warm(tmp_path_factory) -> Iterator[Warm]:
    """`pelasr` in processes that need not import torch."""
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()


@pytest.fixture
def make_rnnt():
    """`random_models.make_rnnt`; imported when asked for, as the process that hands out the tests needs no torch."""
    from random_models import make_rnnt

    return make_rnnt


@pytest.fixture
def make_st():
    from random_models import make_st

    return make_st


@pytest.fixture
def make_model():
    from random_models import make_model

    return make_model


@pytest.fixture
def make_batch():
    from random_models import make_batch

    return make_batch


def once_for_all(factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of this name, filled by whichever process of the tests comes first, the others waiting for it."""
    top = factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    with open(top / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (top / name).exists():
            filling = factory.mktemp(name)
            fill(filling)
            filling.rename(top / name)
    return top / name


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, request) -> Path:
    """A folder with `data`, `dump` and `exp` of the mini corpus of seconds in three languages, after stages 1 to 3."""

    def fill(folder: Path) -> None:
        warm = request.getfixturevalue("warm")
        script = ROOT / "egs/mini_indic/asr1/local/data.py"
        make = [sys.executable, script, "--size", "test", "--langs", "hi ta ur", "--data", "data"]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/local:{ROOT}"}
        subprocess.run(make, cwd=folder, env=environment, check=True)
        for verb in (["data", "--config", ROOT / "conf/rnnt_mini.yaml"], ["tokens"], ["stats"]):
            subprocess.run([*warm.command, *verb, "--langs", "hi ta ur"], cwd=folder, env=environment, check=True)

    return once_for_all(tmp_path_factory, "prepared", fill)
