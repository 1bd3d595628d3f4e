"""The speech translation Transformer of Le et al., ACL-IJCNLP 2021 (arXiv 2106.01463; fairseq's s2t_transformer),
every size configurable; with a CTC branch it recognises speech too.

Log-mel frames, normalised within their utterance, are thinned to a quarter by gated convolutions; one of ESPnet's
encoders and ESPnet's Transformer decoder follow. The first token of a translation is the tag of its language.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.backbones.base import Augment, Backbone
from pelasr.backbones.sites import layer_norms, module_sites, output_sites
from pelasr.config import construct
from pelasr.data.hears import LogMel
from pelasr.errors import PelasrError, nearest
from pelasr.nn.espnet import ESPNET_ENCODERS, ESPNET_SITES, SHARED_BY_ROWS, ESPnetEncoder, espnet_sites
from pelasr.nn.frames import set_labels
from pelasr.nn.layers import ConvSubsampler, Loss, ctc_loss, within
from pelasr.nn.stateless import make_stateless
from pelasr.search.attention import CachedDecoder
from pelasr.search.beam import beam_search
from pelasr.search.ctc import ctc_best_path
from pelasr.search.hypothesis import Hypothesis

IGNORED = -100  # what cross_entropy leaves out


class SpeechEncoder(nn.Module):
    """The convolutional subsampler and the encoder's layers; with `encoder_conf.input_layer`, ESPnet's subsampler."""

    def __init__(self, num_mels: int, name: str, conf: dict[str, Any], subsampler_conf: dict[str, Any] | None):
        super().__init__()
        from espnet.nets.pytorch_backend.transformer.embedding import PositionalEncoding

        self.subsampler = self.position = None
        if conf.get("input_layer") is not None:
            self.stack = ESPnetEncoder(name, num_mels, conf)
        else:
            if "output_size" not in conf:
                raise PelasrError("encoder_conf: output_size is missing")
            width = conf["output_size"]
            self.subsampler = construct(
                ConvSubsampler, subsampler_conf, "subsampler_conf", input_size=num_mels, output_size=width
            )
            # ESPnet's Transformer adds no positions without a subsampler of its own, its Conformers do.
            if name == "transformer":
                self.position = PositionalEncoding(width, conf.get("positional_dropout_rate", 0.1))
                make_stateless(self.position)
            self.stack = ESPnetEncoder(name, width, {**conf, "input_layer": None})
        self.input_size, self.output_size = num_mels, self.stack.output_size
        self.subsampling = self.stack.subsampling * (self.subsampler.subsampling if self.subsampler else 1)

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, mels), (B,) to (B, T', D), (B,)."""
        if self.subsampler is not None:
            x, lens = self.subsampler(x, lens)
        if self.position is not None:
            x = self.position(x)
        return self.stack(x, lens)


class ST(Backbone):
    """Speech to text with attention.

    Args:
        vocab_size: number of tokens; 0 is blank, the last is `<sos/eos>`.
        num_languages: not used: the language is told by the tag that the decoder starts with.
        encoder, encoder_conf: ESPnet's name and arguments (`output_size` is D).
        decoder_conf: arguments of ESPnet's TransformerDecoder; embeddings are not tied, the output has no bias.
        subsampler_conf: arguments of `ConvSubsampler`.
        ctc_weight: w of the loss w CTC + (1 - w) attention; 1: no decoder, the search is CTC's best path.
        label_smoothing: share of the probability that every token gets.
        num_mels: log-mel channels of the input.
    """

    beam_size = 5
    encoder_side = ("encoder",)

    def __init__(
        self,
        vocab_size: int,
        num_languages: int,
        encoder: str = "transformer",
        encoder_conf: dict[str, Any] | None = None,
        decoder_conf: dict[str, Any] | None = None,
        subsampler_conf: dict[str, Any] | None = None,
        ctc_weight: float = 0.0,
        label_smoothing: float = 0.1,
        num_mels: int = 80,
    ):
        super().__init__()
        if encoder not in ESPNET_ENCODERS:
            raise PelasrError(f"encoder: {encoder!r}; {nearest(encoder, ESPNET_ENCODERS)}")
        if not 0 <= ctc_weight <= 1:
            raise PelasrError(f"ctc_weight: {ctc_weight} is not between 0 (attention alone) and 1 (CTC alone)")
        self.hears = LogMel(num_mels)
        self.ctc_weight, self.label_smoothing, self.end = ctc_weight, label_smoothing, vocab_size - 1
        self.encoder = SpeechEncoder(num_mels, encoder, dict(encoder_conf or {}), subsampler_conf)
        self.decoder = None if ctc_weight == 1 else self._make_decoder(vocab_size, decoder_conf)
        self.ctc = nn.Linear(self.encoder.output_size, vocab_size) if ctc_weight else None
        self._initialise()

    def _make_decoder(self, vocab_size: int, conf: dict[str, Any] | None) -> nn.Module:
        from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

        width = self.encoder.output_size
        decoder = construct(
            TransformerDecoder,
            conf,
            "decoder_conf",
            vocab_size=vocab_size,
            encoder_output_size=width,
            use_output_layer=False,
            use_flash_attn=False,
        )
        decoder.output_layer = nn.Linear(width, vocab_size, bias=False)
        make_stateless(decoder)
        return decoder

    def _initialise(self) -> None:
        """Xavier's for matrices, and embeddings that are as large as the positions once they are scaled by sqrt(D)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)

    @property
    def encodes_language(self) -> bool:
        """Never: the decoder is told it."""
        return False

    @property
    def subsampling(self) -> int:
        """By the convolutions."""
        return self.encoder.subsampling

    def sites(self) -> dict[str, dict[str, int]]:
        """Beside those of `module_sites`: `ffn`, the feed-forward sub-layers (a Conformer's second ones), before their
        residual is added; `layer` and `attention`, the encoder's; `layer_norm`; `input` and `top`, the encoder;
        `output`, the output layers that have a bias; `encoder` and `decoder`, to be fine-tuned."""
        width, inner = self.encoder.output_size, espnet_sites(self.encoder.stack, "encoder.stack")
        sites = inner | {"encoder": {"encoder": width}, "input": {"encoder": width}, "top": {"encoder": width}}
        layers = list(inner["layer"])
        if self.decoder is not None:
            decoders = [f"decoder.decoders.{n}" for n, _ in self.get_submodule("decoder.decoders").named_children()]
            after = {f"{layer}.feed_forward": width for layer in decoders}
            layers += decoders
            sites |= {"ffn": inner.get("ffn", {}) | after, "decoder": {"decoder": width}}
        if self.ctc is not None:
            sites["encoder"]["ctc"] = self.ctc.out_features  # its branch is fine-tuned with it
        typed = module_sites(self, ESPNET_SITES, [*self.own_sites(), SHARED_BY_ROWS])
        return sites | typed | layer_norms(typed, layers) | output_sites(self)

    def own_sites(self) -> dict[str, str]:
        """The decoder's embedding, and the output layers."""
        sites = {"ctc": "output"} if self.ctc is not None else {}
        if self.decoder is not None:
            sites |= {"decoder.embed.0": "embedding", "decoder.output_layer": "output"}
        return sites

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the corpus are not used: every utterance is normalised by its own."""

    def encode(
        self,
        feats: Tensor,
        lens: Tensor,
        language_ids: Tensor | None = None,
        augment: Augment | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.encode`; every utterance is normalised by its own mean and variance."""
        x = normalise(feats, lens)
        if augment is not None:
            x, lens = augment(x, lens)
        return self.encoder(x, lens)

    def loss(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Loss:
        """Attention's and CTC's, by `ctc_weight`."""
        parts = {}
        if self.ctc is not None:
            parts["ctc"] = ctc_loss(self.ctc(enc), enc_lens, targets, target_lens)
        if self.decoder is not None:
            parts["attention"] = self._attention_loss(enc, enc_lens, targets, target_lens, prefix)
        weights = {"ctc": self.ctc_weight, "attention": 1 - self.ctc_weight}
        total: Any = sum(weights[name] * part for name, part in parts.items())
        return Loss(total, parts)

    def _attention_loss(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None
    ) -> Tensor:
        """Cross entropy of the labels and the end with smoothing, summed over each utterance: (B,)."""
        logits = self.logits(enc, enc_lens, targets, target_lens, prefix)
        targets = targets[:, : logits.shape[1] - 1]
        counted = within(target_lens, targets.shape[1])
        labels = F.pad(targets.where(counted, IGNORED), (0, 1), value=IGNORED)
        labels = labels.scatter(1, target_lens[:, None], self.end)
        return cross_entropy(logits.float(), labels, self.label_smoothing, shared=self.end + 1).sum(1)

    def logits(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """What the labels are predicted from, each after those before it: (B, U + 1, V); without a decoder CTC's logits
        (B, T, V)."""
        if self.decoder is None:
            return self._ctc_logits(enc)
        targets = targets[:, : int(target_lens.max())]  # ESPnet makes its masks from the lengths alone
        given = F.pad(targets, (1, 0), value=self.end) if prefix is None else self._start(prefix, targets)
        forced = given.shape[1] - targets.shape[1] - 1
        lens = target_lens + forced + 1
        set_labels(within(lens, given.shape[1]))
        return self.decoder(enc, enc_lens, given, lens)[0][:, forced:]

    def _ctc_logits(self, enc: Tensor) -> Tensor:
        """(B, T, V) of a model that has CTC."""
        assert self.ctc is not None
        return self.ctc(enc)

    def _start(self, prefix: Tensor, targets: Tensor) -> Tensor:
        """What the decoder is given: `<sos/eos>`, the prefix (B, P), the labels (B, U)."""
        return torch.cat([F.pad(prefix, (1, 0), value=self.end), targets], dim=1)

    @torch.no_grad()
    def search(
        self, enc: Tensor, enc_lens: Tensor, prefix: Tensor | None = None, beam_size: int = 1
    ) -> list[Hypothesis]:
        """The best label sequence of each encoder output (B, T, D), after the forced first tokens (B, P), which it
        leaves out. Beam search, as long as the encoder output at most; without a decoder CTC's best path."""
        if self.decoder is None:
            return ctc_best_path(self._ctc_logits(enc), enc_lens)
        if prefix is None:
            prefix = enc_lens.new_empty(len(enc), 0)
        start = F.pad(prefix, (1, 0), value=self.end)
        return beam_search(CachedDecoder(self.decoder, enc, enc_lens), start, enc_lens, self.end, beam_size)


def normalise(feats: Tensor, lens: Tensor) -> Tensor:
    """Every channel of every utterance (B, T, C) to mean 0 and variance 1 over its frames; padding to 0."""
    mask = within(lens, feats.shape[1])[..., None]
    mean = (feats * mask).sum(1, keepdim=True) / lens[:, None, None]
    x = (feats - mean) * mask
    variance = x.square().sum(1, keepdim=True) / lens[:, None, None]
    return x / variance.sqrt().clamp(min=1e-3)


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, shared: int) -> Tensor:
    """Cross entropy (B, U) of logits (B, U, V) and labels (B, U), 0 where they are IGNORED, with label smoothing over
    the tokens that a row has: beyond the `shared` ones the logits of others' own tokens are minus infinity."""
    if logits.shape[-1] == shared:
        return F.cross_entropy(logits.transpose(1, 2), labels, label_smoothing=smoothing, reduction="none")
    log_probs = logits.log_softmax(-1)
    label = -log_probs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    there = logits.isfinite()
    everything = -log_probs.where(there, 0.0).sum(-1) / there.sum(-1)
    return ((1 - smoothing) * label + smoothing * everything).where(labels != IGNORED, 0.0)


BACKBONE: type[Backbone] = ST
