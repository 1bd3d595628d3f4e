"""The editable install that tools/install.sh makes."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_clone_does_not_hide_the_package_from_its_parent_folder(tmp_path):
    """The clone is called pelasr too, and is no package: seen from its parent it would be an empty namespace."""
    clone = tmp_path / "pelasr"
    (clone / "pelasr").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "pelasr/__init__.py", "pelasr/version.py"):
        shutil.copy(ROOT / name, clone / name)
    # What `pip install --editable` puts into site-packages.
    build = f"import setuptools.build_meta as build; build.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True)
    installed = tmp_path / "site-packages"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    code = f"import site; site.addsitedir({str(installed)!r}); import pelasr; print(pelasr.__file__)"
    found = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(clone / "pelasr/__init__.py")
    assert '--editable "$root"' in (ROOT / "tools/install.sh").read_text()
