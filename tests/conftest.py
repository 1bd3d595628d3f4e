"""A tiny model and batches of noise, shared by the tests of the core."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import ENCODERS, LANGUAGES, MELS, ROOT, ST_ENCODERS, ST_VOCABULARY, VOCABULARY

from pelasr.backbones.rnnt import RNNT
from pelasr.backbones.st import ST
from pelasr.data.batch import Batch

torch.set_num_threads(1)


@pytest.fixture
def make_rnnt():
    """Factory of tiny RNN-Ts with random weights that follow from `seed`, in evaluation mode."""

    def make(encoder: str = "lstm", seed: int = 0, vocab_size: int = VOCABULARY, **options) -> RNNT:
        torch.manual_seed(seed)
        defaults = {
            "stack": 2,
            "stride": 2,
            "encoder": encoder,
            "encoder_conf": ENCODERS[encoder],
            "decoder_conf": {"num_layers": 2, "hidden_size": 8, "output_size": 6},
            "joint_net_conf": {"joint_space_size": 6},
            "num_mels": MELS,
        }
        return RNNT(vocab_size, len(LANGUAGES), **{**defaults, **options}).eval()

    return make


@pytest.fixture
def make_st():
    """Factory of tiny translation models with random weights that follow from `seed`, in evaluation mode; `sharpness`
    is a factor on the decoder's logits, so that hypotheses differ and end by themselves."""

    def make(
        encoder: str = "transformer", seed: int = 0, vocab_size: int = ST_VOCABULARY, sharpness: float = 4.0, **options
    ) -> ST:
        torch.manual_seed(seed)
        defaults = {
            "encoder": encoder,
            "encoder_conf": ST_ENCODERS[encoder],
            "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 2},
            "subsampler_conf": {"channels": 8},
            "num_mels": MELS,
        }
        model = ST(vocab_size, len(LANGUAGES), **{**defaults, **options}).eval()
        if model.decoder is not None:
            model.decoder.output_layer.weight.data *= sharpness
        return model

    return make


@pytest.fixture
def make_model(make_rnnt, make_st):
    """Factory of either, by family (`rnnt`, `st`) and options."""

    def make(family: str, options: dict) -> RNNT | ST:
        return {"rnnt": make_rnnt, "st": make_st}[family](**options)

    return make


@pytest.fixture
def make_batch():
    """Factory of noise: one utterance for each entry of `languages`, of different lengths."""

    def make(languages: list[str], seed: int = 0, frames: list[int] | None = None) -> Batch:
        draws = torch.Generator().manual_seed(seed)
        count = len(languages)
        lens = torch.tensor(frames or [31 - 3 * (n % 4) for n in range(count)])
        target_lens = torch.tensor([3 - n % 3 for n in range(count)])
        feats = torch.randn(count, int(lens.max()), MELS, generator=draws)
        feats *= (torch.arange(feats.shape[1]) < lens[:, None])[..., None]
        return Batch(
            ids=[f"u{n}" for n in range(count)],
            languages=languages,
            texts=["" for _ in languages],
            feats=feats,
            lens=lens,
            targets=torch.randint(1, VOCABULARY, (count, 3), generator=draws),
            target_lens=target_lens,
            language_ids=torch.tensor([LANGUAGES.index(language) for language in languages]),
        )

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A folder with `data`, `dump` and `exp` of the mini corpus of seconds in three languages, after stages 1 to 3."""
    folder = tmp_path_factory.mktemp("prepared")
    make = [sys.executable, ROOT / "egs/mini_indic/asr1/local/data.py", "--size", "test", "--langs", "hi ta ur"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/local:{ROOT}", "OMP_NUM_THREADS": "1"}
    subprocess.run([*make, "--data", "data"], cwd=folder, env=environment, check=True)
    for verb in (["data", "--config", ROOT / "conf/rnnt_mini.yaml"], ["tokens"], ["stats"]):
        command = [sys.executable, "-m", "pelasr", *verb, "--langs", "hi ta ur"]
        subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder
