"""A speech encoder with a CTC output layer (Graves et al. 2006): one that was pretrained, or is trained here.

The encoder is one of transformers' (wav2vec 2.0, HuBERT, WavLM, Wav2Vec2-BERT), whose convolutions stay frozen, or one
of ESPnet's. Trained on texts it has a shared output layer. Otherwise every language brings a whole one of its own, with
all its tokens, so that an encoder that never saw a text is a backbone as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from pelasr.adapters.own import HEAD, LAYERS, OUTPUT, LayerSum, OwnOutput
from pelasr.backbones.base import AUDIO, NOTHING, TEXTS, Augment, Backbone
from pelasr.backbones.sites import layer_norms, module_sites, output_sites
from pelasr.config import construct
from pelasr.data.hears import Extracted, LogMel, Waveform
from pelasr.errors import PelasrError, nearest
from pelasr.nn.espnet import ESPNET_ENCODERS, ESPNET_SITES, SHARED_BY_ROWS, ESPnetEncoder, espnet_sites
from pelasr.nn.layers import Loss, ctc_loss, within
from pelasr.nn.span_masks import SpanMasks, time_mask
from pelasr.nn.speech_encoder import ENCODERS, NO_SITES, PRETRAINED_SITES, encoder_sites, make_encoder, make_frontend
from pelasr.search.ctc import ctc_beam_search, ctc_best_path
from pelasr.search.hypothesis import Hypothesis
from pelasr.search.lm import Fusion

SEAMLESS = Extracted(kind="seamless", channels=160)
LEARNS_FROM = {"ctc": TEXTS, "masked": AUDIO, "none": NOTHING}  # by objective
SAMPLES_PER_FRAME, SAMPLES_PER_UNIT = 160, 320  # of a feature frame of 10 ms, and of one that has a cluster


class LogMelEncoder(nn.Module):
    """One of ESPnet's encoders behind the interface of a pretrained one."""

    def __init__(self, name: str, num_mels: int, conf: dict[str, Any]):
        super().__init__()
        self.stack = ESPnetEncoder(name, num_mels, conf)
        self.input_size, self.output_size, self.num_layers = num_mels, self.stack.output_size, 0

    def forward(self, x: Tensor, lens: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, T, mels), (B,) to the last layer's output (B, T', D), alone in a list, and (B,)."""
        x, lens = self.stack(x, lens)
        return [x], lens


class CTC(Backbone):
    """An encoder and CTC.

    Args:
        vocab_size: number of tokens; 0 is blank.
        num_languages: not used: an encoder is not told the language.
        encoder, encoder_conf: wav2vec2, hubert, wavlm or wav2vec2_bert and the keys of transformers' configuration that
            shape it; or ESPnet's conformer, transformer or e_branchformer and its arguments.
        objective: what it is trained for: `ctc`, the tokens of all languages; `masked`, the clusters of what is masked
            (Hsu et al. 2021, HuBERT); `none`: it is not, but taken as it is. Without `ctc` every language has an output
            layer of its own.
        layers: what the output layer sees: the `last` one, or the `sum` of all, see `LayerSum`.
        train_frontend: whether the convolutions are trained too; those of pretrained encoders usually are not.
        normalise: whether every utterance's waveform gets mean 0 and variance 1.
        masks: arguments of `SpanMasks` that the encoder was trained with; those of `specaug_conf` count first.
        num_clusters: of `masked`.
        mask_prob, mask_length: of `masked`: share of frames that begin a span times its length, and that length.
        unmasked_weight: of `masked`: weight of the loss of frames that are not.
        num_mels: log-mel channels that ESPnet's encoders hear.
    """

    beam_size = 1
    trains_with_ctc = True
    batch_frames = 6000  # convolutions over samples take much memory
    encoder_side = ("frontend", "encoder", "mask_embedding")

    def __init__(
        self,
        vocab_size: int,
        num_languages: int,
        encoder: str = "wav2vec2",
        encoder_conf: dict[str, Any] | None = None,
        objective: str = "ctc",
        layers: str = "last",
        train_frontend: bool = False,
        normalise: bool = True,
        masks: dict[str, Any] | None = None,
        num_clusters: int = 100,
        mask_prob: float = 0.65,
        mask_length: int = 10,
        unmasked_weight: float = 0.0,
        num_mels: int = 80,
    ):
        super().__init__()
        for key, value, known in (("objective", objective, LEARNS_FROM), ("layers", layers, ("last", "sum"))):
            if value not in known:
                raise PelasrError(f"{key}: {value!r}; {nearest(value, known)}")
        self.objective, self.mask_prob, self.mask_length = objective, mask_prob, mask_length
        self.unmasked_weight, self.masks = unmasked_weight, dict(masks or {})
        self._make_encoder(encoder, dict(encoder_conf or {}), normalise, num_mels)
        if self.frontend is not None:
            self.frontend.requires_grad_(train_frontend)
        self.learns_from = LEARNS_FROM[objective]
        size, count = self.encoder.output_size, self.encoder.num_layers + 1
        if objective == "masked":
            self._check_maskable(encoder, num_clusters)
            self.units = nn.Linear(size, num_clusters)
        shared = objective == "ctc"
        if layers == "sum" and (shared or count == 1):
            why = (
                f"{encoder} shows its last layer alone" if count == 1 else "each language's weights go with own outputs"
            )
            raise PelasrError(f"layers: sum: {why}; use `layers: last`")
        self.layer_sum = LayerSum("layer_sum", count) if layers == "sum" else None
        self.top = nn.Identity()
        self.ctc = nn.Linear(size, vocab_size) if shared else OwnOutput("ctc", vocab_size, size)

    def _make_encoder(self, name: str, conf: dict[str, Any], normalise: bool, num_mels: int) -> None:
        """The encoder with what comes before it, and what is heard."""
        self.frontend = self.mask_embedding = None
        if name in ESPNET_ENCODERS:
            self.hears = LogMel(num_mels)
            self.register_buffer("feature_mean", torch.zeros(num_mels))
            self.register_buffer("feature_std", torch.ones(num_mels))
            self.encoder = LogMelEncoder(name, num_mels, conf)
            return
        if name not in ENCODERS:
            raise PelasrError(f"encoder: {name!r}; {nearest(name, [*ENCODERS, *ESPNET_ENCODERS])}")
        self.frontend = make_frontend(name, conf)
        self.encoder = make_encoder(name, conf)
        self.hears = SEAMLESS if self.frontend is None else Waveform(normalise)
        width = conf.get("feature_projection_input_dim", SEAMLESS.channels)
        if self.frontend is None and width != SEAMLESS.channels:
            what = f"{width}, but {SEAMLESS.channels} channels are heard"
            raise PelasrError(f"encoder_conf: feature_projection_input_dim: {what}")
        self.mask_embedding = nn.Parameter(torch.rand(self.encoder.output_size), self.objective == "masked")

    def _check_maskable(self, name: str, num_clusters: int) -> None:
        if self.frontend is None:
            raise PelasrError(f"objective: masked: {name} hears no waveform, in which alone frames are masked here")
        if self.frontend.subsampling != SAMPLES_PER_UNIT:
            what = f"clusters are of frames of {SAMPLES_PER_UNIT} samples, those of this conv_stride are of"
            raise PelasrError(f"objective: masked: {what} {self.frontend.subsampling}")
        if num_clusters < 2:
            raise PelasrError(f"num_clusters: {num_clusters}: want 2 or more to tell apart")
        if not 0 < self.mask_prob < 1 or self.mask_length < 1:
            raise PelasrError("mask_prob, mask_length: want a share between 0 and 1, and at least one frame")

    @property
    def encodes_language(self) -> bool:
        """If layers are summed by a language's weights."""
        return self.layer_sum is not None

    @property
    def subsampling(self) -> int:
        """By the convolutions."""
        if isinstance(self.encoder, LogMelEncoder):
            return self.encoder.stack.subsampling
        return 2 if self.frontend is None else max(self.frontend.subsampling // SAMPLES_PER_FRAME, 1)

    def sites(self) -> dict[str, dict[str, int]]:
        """Beside those of `module_sites`: `layer`, the encoder's layers; `ffn`, its feed-forward sub-layers
        before their residual is added; `attention`; `layer_norm`; `embed`, the projection before the layers; `input`,
        what is given samples or features, and their number; `top`, what the output layer sees; `output`, that layer,
        if it is shared; `encoder`, all but the convolutions over samples, to be fine-tuned."""
        width, left_out = self.encoder.output_size, [*self.own_sites(), "units"]
        first = {"encoder": width} if self.frontend is None else {"frontend": self.frontend.output_size}
        whole = {"encoder": {"encoder": width}, "input": first, "top": {"top": width}}
        if isinstance(self.encoder, LogMelEncoder):
            inner = espnet_sites(self.encoder.stack, "encoder.stack")
            typed = module_sites(self, ESPNET_SITES, [*left_out, SHARED_BY_ROWS])
        else:
            inner = encoder_sites(self.encoder, "encoder")
            typed = module_sites(self, PRETRAINED_SITES, [*left_out, *NO_SITES])
        return whole | inner | typed | layer_norms(typed, inner["layer"]) | output_sites(self)

    def own_sites(self) -> dict[str, str]:
        """The output layer; the weights of the layers' sum."""
        if self.objective == "ctc":
            return {"ctc": OUTPUT}
        return {"ctc": HEAD} | ({"layer_sum": LAYERS} if self.layer_sum is not None else {})

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """Of ESPnet's encoders they are part of the saved backbone."""
        if isinstance(self.encoder, LogMelEncoder):
            self.feature_mean.copy_(mean)
            self.feature_std.copy_(std)

    def make_augment(self, conf: dict[str, Any]) -> Any:
        """Of pretrained encoders the masks of their own, see `SpanMasks`; otherwise as of every backbone."""
        if self.mask_embedding is None:
            return super().make_augment(conf)
        return construct(SpanMasks, self.masks | conf, "specaug_conf", embedding=self.mask_embedding)

    def encode(
        self, feats: Tensor, lens: Tensor, language_ids: Tensor | None = None, augment: Augment | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.encode`; the features of a waveform are samples (B, N, 1)."""
        if isinstance(self.encoder, LogMelEncoder):
            x = (feats - self.feature_mean) / self.feature_std
            x, lens = augment(x, lens) if augment is not None else (x, lens)
            states, lens = self.encoder(x, lens)
        else:
            x, lens = (feats, lens) if self.frontend is None else self.frontend(feats, lens)
            states = self.encoder(x, lens, augment)
        return self.top(states[-1] if self.layer_sum is None else self.layer_sum(states)), lens

    def masked_loss(
        self, feats: Tensor, lens: Tensor, units: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy of the clusters of masked frames; which are masked follows from each utterance's seed.

        Samples (B, N, 1), (B,), the cluster of every encoder frame (B, T) to the mean loss in nats of each utterance's
        masked frames, with that of the others by their weight, how many masked frames are recognised wrongly, and how
        many there are, (B,) each.
        """
        assert self.frontend is not None and self.mask_embedding is not None
        x, lens = self.frontend(feats, lens)
        mask = self._mask(lens.tolist(), seeds).to(x.device)
        hidden = self.mask_embedding
        enc = self.encoder(x, lens, lambda x, lens: torch.where(mask[..., None], hidden.to(x.dtype), x))[-1]
        logits = self.units(enc).float().transpose(1, 2)
        losses = F.cross_entropy(logits, units, reduction="none")
        wrong = (logits.argmax(1).ne(units) & mask).sum(1)
        loss = _mean(losses, mask)
        if self.unmasked_weight:
            loss = loss + self.unmasked_weight * _mean(losses, ~mask & within(lens, mask.shape[1]))
        return loss, wrong, mask.sum(1)

    def _mask(self, lens: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Which frames are masked (B, T)."""
        rows = []
        for frames, seed in zip(lens, seeds, strict=True):
            drawn = torch.Generator().manual_seed(seed)
            rows.append(time_mask(torch.tensor([frames]), self.mask_prob, self.mask_length, 1, drawn)[0])
        return pad_sequence(rows, batch_first=True)

    def loss(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Loss:
        """CTC's. `prefix` is not used."""
        ctc = ctc_loss(self.ctc(enc), enc_lens, targets, target_lens)
        return Loss(ctc, {"ctc": ctc})

    def logits(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Of every frame, (B, T, V), whatever the labels."""
        return self.ctc(enc)

    @torch.no_grad()
    def search(
        self, enc: Tensor, enc_lens: Tensor, prefix: Tensor | None = None, beam_size: int = 1
    ) -> list[Hypothesis]:
        """Best path with a `beam_size` of 1, otherwise the best label sequence of a prefix beam search."""
        logits = self.ctc(enc)
        return ctc_best_path(logits, enc_lens) if beam_size == 1 else ctc_beam_search(logits, enc_lens, beam_size)

    @torch.no_grad()
    def fused_search(
        self, enc: Tensor, enc_lens: Tensor, fusions: Sequence[Fusion | None], beam_size: int
    ) -> list[Hypothesis]:
        """Prefix beam search with language models."""
        return ctc_beam_search(self.ctc(enc), enc_lens, beam_size, fusions)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Of the values (B, T) that are chosen, row by row: (B,), 0 where none is."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp(min=1)


BACKBONE: type[Backbone] = CTC
