"""Tiny models with random weights, in evaluation mode, and batches of noise."""

import torch
from tiny_models import ENCODERS, LANGUAGES, MELS, ST_ENCODERS, ST_VOCABULARY, VOCABULARY

from pelasr.backbones.rnnt import RNNT
from pelasr.backbones.st import ST
from pelasr.data.batch import Batch


def make_rnnt(encoder: str = "lstm", seed: int = 0, vocab_size: int = VOCABULARY, **options) -> RNNT:
    """An RNN-T with weights that follow from `seed`."""
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


def make_st(
    encoder: str = "transformer", seed: int = 0, vocab_size: int = ST_VOCABULARY, sharpness: float = 4.0, **options
) -> ST:
    """A translation model with weights that follow from `seed`; `sharpness` is a factor on the decoder's logits, so
    that hypotheses differ and end by themselves."""
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


def make_model(family: str, options: dict) -> RNNT | ST:
    """Either, by family (`rnnt`, `st`) and options."""
    return {"rnnt": make_rnnt, "st": make_st}[family](**options)


def make_batch(languages: list[str], seed: int = 0, frames: list[int] | None = None) -> Batch:
    """Noise: one utterance for each entry of `languages`, of different lengths."""
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
