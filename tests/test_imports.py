"""Who may import whom: methods, models, corpora and numbers stay in folders of their own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pelasr"
LEAVES = {"config", "errors", "files", "hypothesis", "mixed", "private", "progress", "rows", "sealed", "sites", "text"}
LEAVES |= {"backbone_format", "pack_format", "parts", "stateless"}
NETWORKS = {"attention", "beam", "encoders", "transducer"}  # what backbones are made of, and their searches
RUNS = {"batch", "decode", "evaluate", "fit", "train"}
MODELS = NETWORKS | RUNS | {"adapter", "adapters", "backbones", "finetune", "fold", "model", "pack", "packs"}
DATA = ["archive", "audio", "characters", "corpus", "data", "overlap", "pieces", "problems", "sampling", "segment"]
DATA += ["sound", "tables", "text", "validate"]
SCORES = ["bleu", "bootstrap", "results", "score", "wer"]
PAGE = ["grid", "page", "recognition_table", "table", "translation_table"]
PACKS = ["card", "pack_format", "pack_verbs"]
SMALL = ["environment", "events", "files", "terminal"]
STAGES = ["experiment", "figures", "prepare", "stages"]  # their functions import what a stage needs
HEAVY = {"torch", "espnet", "espnet2", "lightning", "torchaudio", "transformers"}
SLOW = {"jiwer", "librosa", "matplotlib", "sacrebleu", "scipy"}


def imports(path, top_level=False):
    """Modules that a file imports, as dotted names; `top_level`: only those of merely importing it."""
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
        elif not (top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def ours(path, **options):
    """Modules of pelasr that a file imports, {"config", "backbones.rnnt"}; names within modules are left out."""
    found = set()
    for name in imports(path, **options):
        parts = name.split(".")
        if parts[0] == "pelasr" and len(parts) > 1:
            inner = PACKAGE.joinpath(*parts[1:])
            if inner.is_dir() or inner.with_suffix(".py").exists():
                found.add(".".join(parts[1:]))
    return found


def roots(names):
    return {name.split(".")[0] for name in names}


def files(folder):
    found = sorted((PACKAGE / folder).glob("*.py"))
    assert len(found) > 1
    return found


def test_the_reader_of_imports(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import os.path, pelasr.files\n"
        "from pelasr import adapter\n"
        "from pelasr.backbones.rnnt import RNNT\n"
        "if True:\n    import numpy\n"
        "class A:\n    import json\n    def f(self):\n        import torch\n        from pelasr.train import Fit\n"
    )
    assert {"os.path", "numpy", "json", "torch"} <= imports(path)
    assert "torch" not in imports(path, top_level=True) and "json" in imports(path, top_level=True)
    assert ours(path) == {"files", "adapter", "backbones.rnnt", "train"}
    assert "train" not in ours(path, top_level=True)


@pytest.mark.parametrize("path", files("adapters"), ids=lambda path: path.stem)
def test_adapters_import_the_heart_alone(path):
    assert ours(path) <= {"adapter", "errors", "mixed"}


@pytest.mark.parametrize("path", files("backbones"), ids=lambda path: path.stem)
def test_backbones_import_leaves(path):
    allowed = LEAVES | NETWORKS
    assert roots(ours(path)) <= allowed | {"backbones"}
    assert not imports(path) & {"lightning"}


def test_leaves_import_leaves():
    for name in LEAVES:
        assert roots(ours(PACKAGE / f"{name}.py")) <= LEAVES, name
    for name in NETWORKS:
        assert roots(ours(PACKAGE / f"{name}.py")) <= LEAVES | NETWORKS, name


def test_the_heart_knows_no_model():
    assert ours(PACKAGE / "adapter.py") <= {"config", "errors", "mixed", "parts", "private"}
    assert ours(PACKAGE / "finetune.py") <= {"adapter", "errors", "mixed", "parts", "private"}
    assert ours(PACKAGE / "fold.py") <= {"adapter", "errors"}
    for name in ("adapter", "finetune", "fold"):
        assert not roots(imports(PACKAGE / f"{name}.py")) & {"espnet", "espnet2", "transformers", "lightning"}


@pytest.mark.parametrize("name", [*DATA, *SCORES, *PAGE])
def test_data_and_figures_know_no_model(name):
    path = PACKAGE / f"{name}.py"
    assert not roots(ours(path)) & MODELS
    assert not roots(imports(path, top_level=True)) & HEAVY


def test_nothing_imports_the_command_line():
    above = {"cli": {"__main__"}, "figures": {"cli"}, "stages": {"cli", "figures", "model", "prepare"}}
    for path in PACKAGE.rglob("*.py"):
        for name, allowed in above.items():
            assert name not in ours(path) or path.stem in allowed, path


@pytest.mark.parametrize("path", sorted(ROOT.glob("egs/*/*/local/*.py")), ids=lambda path: path.parts[-4])
def test_recipes_import_the_data_layer(path):
    assert roots(ours(path)) <= {"data", "errors", "files", "progress", "terminal", "text"}
    assert not roots(imports(path)) & HEAVY


def test_no_cycles():
    """Importing a module never comes back to itself."""
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ours(path, top_level=True)
        for path in PACKAGE.rglob("*.py")
    }
    done = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def loaded(module):
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return roots(output.split())


def test_the_command_line_starts_at_once():
    found = loaded("pelasr.cli.main")
    assert "pelasr" in found and not found & {*HEAVY, *SLOW, "numpy", "yaml", "rich", "sentencepiece"}


@pytest.mark.parametrize("name", ["features", *DATA, *SCORES, *PAGE, *PACKS, *SMALL, *STAGES])
def test_light_modules_load_nothing_heavy(name):
    assert not loaded(f"pelasr.{name}") & (HEAVY | SLOW)
