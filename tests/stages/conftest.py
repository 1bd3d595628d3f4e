"""A place that stages work in, before and after a fit of two languages."""

import shutil
from pathlib import Path

import pytest

from pelasr.data.place import Place


@pytest.fixture(scope="module")
def started(prepared, tmp_path_factory) -> Path:
    """Data and features of hi, ta and ur, and a backbone of random weights for the first two."""
    from small_fits import start

    folder = tmp_path_factory.mktemp("started")
    for name in ("data", "dump"):
        shutil.copytree(prepared / name, folder / name)
    start(folder, prepared / "exp/tokens")
    return folder


@pytest.fixture(scope="module")
def after_a_fit(started, tmp_path_factory) -> Path:
    """The same after a fit of these two."""
    from small_fits import fit

    folder = tmp_path_factory.mktemp("after_a_fit")
    with pytest.MonkeyPatch.context() as patch:
        assert fit(_place(started, folder, patch))
    return folder


@pytest.fixture
def place(started, tmp_path, monkeypatch) -> Place:
    return _place(started, tmp_path, monkeypatch)


@pytest.fixture
def fitted(after_a_fit, tmp_path, monkeypatch) -> Place:
    return _place(after_a_fit, tmp_path, monkeypatch)


def _place(source: Path, folder: Path, patch: pytest.MonkeyPatch) -> Place:
    """A copy, gone to: paths of audio are relative."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    patch.chdir(folder)
    return Place(Path("data"), Path("dump"), Path("exp"), ["hi", "ta"])
