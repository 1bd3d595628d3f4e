"""What the translation recipe must show (Le et al. 2021, in small), on the tiny corpus: about an hour on 2 cores."""

import os
import subprocess
from pathlib import Path

import pytest

from pelasr.score.results import latest, read_results

ROOT = Path(__file__).parents[2]
REFINED = ["3", "4", "5", "6", "7", "8"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bleu(tmp_path_factory) -> dict[tuple[str, str], float]:
    """Figures by row and language, `mean` among them."""
    folder = tmp_path_factory.mktemp("tiny")
    options = ["--rows", "all", "--size", "tiny", "--ngpu", "0", "--results", str(folder / "RESULTS.md")]
    for name in ("data", "dump", "exp"):
        options += [f"--{name}_dir", str(folder / name)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(["bash", ROOT / "egs/mini_europe/st1/run.sh", *options], check=True, env=environment)
    lines = latest(read_results(folder / "exp/results.jsonl"))
    return {(row, language): line["value"] for (row, _, language, metric), line in lines.items() if metric == "bleu"}


def test_one_model_translates_into_eight_languages(bleu):
    assert bleu["2", "mean"] >= 30


def test_every_refinement_helps_on_the_average(bleu):
    assert all(bleu[row, "mean"] > bleu["2", "mean"] for row in REFINED)


def test_the_order_of_the_refinements(bleu):
    """Both sides are better than the decoder alone, whatever the size; fine-tuning everything is best."""
    assert bleu["4", "mean"] >= bleu["3", "mean"] and bleu["6", "mean"] >= bleu["5", "mean"]
    assert bleu["8", "mean"] >= bleu["7", "mean"]
