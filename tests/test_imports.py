"""Who may import whom: imports go down only, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pelasr"
# Rooms of pelasr/, folders or files. Each imports from the lines below its own only, within functions too.
LAYERS = """
    cli serve
    model
    stages importers
    train
    decode
    packs tasks
    backbones report
    adapters search score
    nn data
    cost storage
    config done parallel terminal
    files progress
    errors version
"""
# What is imported with torch, or to be run; all else answers at once.
HEAVY_ROOMS = {"model", "train", "decode", "backbones", "adapters", "search", "nn", "importers"}
LIGHT_FILES = {"train.options", "train.schedule", "train.events", "train.alike", "backbones.format", "nn.defaults"}
LIGHT_FILES |= {"decode.long_audio", "search.hypothesis", "search.lm"}
HEAVY_FILES = {"packs.pack", "packs.manage", "data.batch", "stages.forgetting"}
HEAVY = {"torch", "espnet", "espnet2", "lightning", "torchaudio", "transformers"}
SLOW = {"jiwer", "librosa", "matplotlib", "sacrebleu", "scipy"}


def imports(path):
    """Modules that a file imports anywhere, functions included, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


def ours(path):
    """Modules of pelasr that a file imports, {"config", "backbones.rnnt"}; names within modules are left out."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "pelasr" and len(parts) > 1:
            inner = PACKAGE.joinpath(*parts[1:])
            if inner.is_dir() or inner.with_suffix(".py").exists():
                found.add(".".join(parts[1:]))
    return found


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def roots(names):
    return {name.split(".")[0] for name in names}


MODULES = {
    name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem[0] != "_"
}
LIGHT = [
    name
    for name in MODULES
    if name in LIGHT_FILES or (name not in HEAVY_FILES and name.split(".")[0] not in HEAVY_ROOMS)
]


def test_the_reader_of_imports(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import os.path, pelasr.files\n"
        "from pelasr.adapters import bank\n"
        "from pelasr.backbones.rnnt import RNNT\n"
        "if True:\n    import numpy\n"
        "class A:\n    import json\n    def f(self):\n        import torch\n        from pelasr.train.loop import Fit\n"
    )
    assert {"os.path", "numpy", "json", "torch"} <= imports(path)
    assert ours(path) == {
        "files",
        "adapters",
        "adapters.bank",
        "backbones",
        "backbones.rnnt",
        "train",
        "train.loop",
    } - {
        "backbones",
        "train",
    }


def test_every_room_has_its_layer():
    rooms = {room for line in LAYERS.splitlines() for room in line.split()}
    assert roots(MODULES) <= rooms
    assert rooms - roots(MODULES) <= {"serve", "importers"}  # to come


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    order = {room: floor for floor, line in enumerate(LAYERS.split("\n")) for room in line.split()}
    own = name.split(".")[0]
    for other in roots(ours(MODULES[name])) - {own}:
        assert order[other] > order[own], f"{name} imports {other}, which is not below it"


def test_no_circles():
    """Importing a module, or calling its functions, never comes back to it."""
    graph = {name: ours(path) for name, path in MODULES.items()}
    done = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("adapters.methods.")])
def test_methods_import_the_face_of_adapters_alone(name):
    """And other methods, of which one may be made."""
    methods = {other for other in MODULES if other.startswith("adapters.methods.")}
    assert ours(MODULES[name]) <= {"adapters", "errors"} | methods


def test_the_heart_knows_no_model():
    for name in MODULES:
        if name.startswith("adapters"):
            assert not roots(imports(MODULES[name])) & {"espnet", "espnet2", "transformers", "lightning"}, name


@pytest.mark.parametrize("path", sorted(ROOT.glob("egs/*/*/local/*.py")), ids=lambda path: path.parts[-4])
def test_recipes_import_the_data_layer(path):
    assert ours(path) <= {"data", "errors", "files", "progress", "terminal"}
    assert not roots(imports(path)) & HEAVY


def loaded(module):
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return roots(output.split())


def test_the_command_line_starts_at_once():
    found = loaded("pelasr.cli.main")
    assert "pelasr" in found and not found & {*HEAVY, *SLOW, "numpy", "yaml", "rich", "sentencepiece"}


def test_light_modules_load_nothing_heavy():
    assert not loaded(", ".join(f"pelasr.{name}" for name in LIGHT)) & (HEAVY | SLOW)


def test_a_model_needs_no_training_engine():
    """Lightning takes seconds to load, for which who transcribes should not wait."""
    assert not loaded("pelasr.model") & {"lightning", "transformers", "scipy"}
