"""A tiny MMS, and the experiment that it makes."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def mms(tmp_path_factory) -> Path:
    from tiny_pretrained import save_mms

    return save_mms(tmp_path_factory.mktemp("model") / "mms")


@pytest.fixture(scope="module")
def made(mms, tmp_path_factory) -> Path:
    """Of both languages."""
    from pelasr.cli.main import main

    exp = tmp_path_factory.mktemp("exp") / "mms"
    main(["import", "mms", str(mms), "--langs", "hin tel", str(exp)])
    return exp
