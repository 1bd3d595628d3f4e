"""The multilingual streaming RNN-T of Kannan et al., Interspeech 2019 (arXiv 1909.05330), every size configurable.

Log-mel frames, normalised, are stacked with their left neighbours and thinned; a language vector is concatenated to
every frame; an encoder of projected unidirectional LSTM layers with a time reduction, or one of ESPnet's encoders,
follows; the prediction network and the joint network are the transducer's usual ones.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pelasr.adapters.hooks import shifted
from pelasr.adapters.own import own_output
from pelasr.backbones.base import Augment, Backbone
from pelasr.backbones.sites import layer_norms, module_sites, output_sites
from pelasr.config import construct
from pelasr.data.hears import LogMel
from pelasr.errors import PelasrError, nearest
from pelasr.nn.espnet import ESPNET_ENCODERS, ESPNET_SITES, SHARED_BY_ROWS, ESPnetEncoder, espnet_sites
from pelasr.nn.frames import set_inside, set_labels
from pelasr.nn.layers import Loss, ctc_loss, within
from pelasr.nn.transducer import transducer_loss
from pelasr.search.hypothesis import Hypothesis
from pelasr.search.transducer import greedy_search

BLANK = 0
OUTPUT_LAYER = "joint.lin_out"
SITES = ESPNET_SITES | {"joint.lin_enc": "joint", "joint.lin_dec": "joint"}


class LSTM(nn.LSTM):
    """A layer of torch's LSTM that does not take several times as long for a single step on a CPU: oneDNN arranges the
    weights anew at every call."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, input) after the state (h, c), (1, B, .) each, to (B, T, output) and the new state."""
        if x.shape[1] > 1 or hx is None or self.proj_size:
            return super().forward(x, hx)
        weights = self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0
        h, c = torch.lstm_cell(x[:, 0], (hx[0][0], hx[1][0]), *weights)
        return h[:, None], (h[None], c[None])


class ProjectedLSTM(nn.Module):
    """One LSTM layer, a linear projection of its cells and a layer norm: a module of its own, so that it is a site."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, layer_norm: bool, dropout: float):
        super().__init__()
        self.input_size = input_size
        projection = output_size if output_size != hidden_size else 0
        self.lstm = LSTM(input_size, hidden_size, proj_size=projection, batch_first=True)
        self.norm = nn.LayerNorm(output_size) if layer_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, input) to (B, T, output)."""
        return self.step(x)[0]

    def step(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `forward`, after the state (h, c), (1, B, .) each; returns the new state too."""
        with torch.autocast(x.device.type, enabled=False):  # cuDNN's LSTM would run in float16, not in bfloat16
            y, after = self.lstm(x.float(), state)
        return self.dropout(self.norm(y)), after


class LSTMEncoder(nn.Module):
    """Unidirectional projected LSTM layers; after layer `reduction_layer` two neighbouring frames become one."""

    def __init__(
        self,
        input_size: int,
        num_layers: int = 8,
        hidden_size: int = 2048,
        output_size: int = 640,
        reduction_layer: int = 2,
        layer_norm: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if not 1 <= reduction_layer < num_layers:
            raise PelasrError(f"encoder_conf: reduction_layer {reduction_layer} is not between 1 and num_layers - 1")
        self.input_size, self.reduction_layer = input_size, reduction_layer
        sizes = [input_size] + [output_size * (2 if n == reduction_layer else 1) for n in range(1, num_layers)]
        self.layers = nn.ModuleList(
            ProjectedLSTM(size, hidden_size, output_size, layer_norm, dropout) for size in sizes
        )
        self.output_size = output_size
        self.subsampling = 2

    def forward(self, x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, input), (B,) to (B, ceil(T / 2), output), (B,)."""
        for number, layer in enumerate(self.layers, 1):
            set_inside(within(lens, x.shape[1]))
            x = layer(x)
            if number == self.reduction_layer:
                x, lens = reduce_time(x, lens)
        return x, lens


def reduce_time(x: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate frames 2k and 2k+1: (B, T, D) to (B, ceil(T / 2), 2 D).

    Frames beyond an utterance's end count as zeros, so that an odd last frame does not see what pads the batch.
    """
    x = F.pad(x * within(lens, x.shape[1])[..., None], (0, 0, 0, x.shape[1] % 2))
    return x.reshape(x.shape[0], x.shape[1] // 2, -1), (lens + 1) // 2


def stack_frames(x: Tensor, lens: Tensor, stack: int, stride: int) -> tuple[Tensor, Tensor]:
    """Frame t with its `stack - 1` left neighbours, one in `stride` kept: (B, T, D) to (B, ceil(T / stride), stack D).

    Only the past is looked at: output k sees input frames up to `stride * k`.
    """
    past = F.pad(x, (0, 0, stack - 1, 0))
    stacked = torch.cat([past[:, n : n + x.shape[1] : stride] for n in range(stack)], dim=-1)
    return stacked, torch.div(lens + stride - 1, stride, rounding_mode="floor")


class LSTMPrediction(nn.Module):
    """Prediction network: embedding and projected LSTM layers."""

    def __init__(
        self,
        vocab_size: int,
        num_layers: int = 2,
        hidden_size: int = 2048,
        output_size: int = 640,
        layer_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, output_size)
        self.layers = nn.ModuleList(
            ProjectedLSTM(output_size, hidden_size, output_size, layer_norm, dropout) for _ in range(num_layers)
        )
        self.output_size = output_size

    def forward(self, labels: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Labels (B, U) after `state` (h and c of every layer, (1, B, .) each) to (B, U, output) and the new state."""
        x, new_state = self.embed(labels), ()
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, ProjectedLSTM)
            x, after = layer.step(x, state[2 * number : 2 * number + 2] if state is not None else None)
            new_state += after
        return x, new_state


class ESPnetPrediction(nn.Module):
    """ESPnet's transducer decoder behind the interface of `LSTMPrediction`."""

    def __init__(self, vocab_size: int, **conf: Any):
        super().__init__()
        from espnet2.asr.decoder.transducer_decoder import TransducerDecoder

        self.decoder: Any = construct(TransducerDecoder, conf, "decoder_conf", vocab_size=vocab_size, embed_pad=BLANK)
        self.output_size = self.decoder.dunits

    def forward(self, labels: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `LSTMPrediction.forward`; the state is ESPnet's (h, c), (layers, B, hidden) each."""
        self.decoder.set_device(labels.device)
        before = self.decoder.init_state(labels.shape[0]) if state is None else state
        before = (*before, None)[:2]  # a GRU has no c
        x, after = self.decoder.rnn_forward(self.decoder.dropout_embed(self.decoder.embed(labels)), before)
        return x, tuple(part for part in after if part is not None)


class LanguageVector(nn.Module):
    """What the encoder is told of the language, concatenated to every input frame.

    `onehot`: row l of the identity, in the order of the languages (Kannan et al., section 3.3);
    `embedding`: a learned row of `size` numbers; `none`: nothing.
    """

    onehot: Tensor

    def __init__(self, kind: str, slots: int, size: int):
        super().__init__()
        if kind not in ("none", "onehot", "embedding"):
            raise PelasrError(f"language_vector: {kind!r}; {nearest(kind, ['none', 'onehot', 'embedding'])}")
        self.embedding = nn.Embedding(slots, size) if kind == "embedding" else None
        if kind == "onehot":
            self.register_buffer("onehot", torch.eye(slots), persistent=False)
        self.kind = kind
        self.size = {"none": 0, "onehot": slots, "embedding": size}[kind]

    def rows(self) -> Tensor:
        """The vectors of all slots (slots, size)."""
        return self.onehot if self.embedding is None else self.embedding.weight

    def forward(self, x: Tensor, language_ids: Tensor) -> Tensor:
        """(B, T, D), (B,) to (B, T, D + size)."""
        if self.kind == "none":
            return x
        rows = self.onehot[language_ids] if self.embedding is None else self.embedding(language_ids)
        return torch.cat([x, rows[:, None].expand(-1, x.shape[1], -1).to(x.dtype)], dim=-1)


class RNNT(Backbone):
    """Multilingual RNN-T.

    Args:
        vocab_size: number of tokens, blank (0) included.
        num_languages: languages that have a slot in the language vector.
        language_vector: none, onehot, or embedding (of `language_vector_size` numbers).
        stack, stride: every `stride`-th frame is stacked with its `stack - 1` left neighbours.
        encoder, encoder_conf: `lstm` (the paper's), or ESPnet's `conformer` or `transformer`, and its arguments.
        decoder, decoder_conf: prediction network: `lstm` (the paper's) or ESPnet's `transducer`, and its arguments.
        joint_net_conf: arguments of ESPnet's joint network.
        ctc_weight: weight of an auxiliary CTC loss on the encoder's output; 0 builds none.
        num_mels: log-mel channels of the input.
    """

    beam_size = 1
    encoder_side = ("encoder",)

    def __init__(
        self,
        vocab_size: int,
        num_languages: int,
        language_vector: str = "onehot",
        language_vector_size: int = 16,
        stack: int = 4,
        stride: int = 3,
        encoder: str = "lstm",
        encoder_conf: dict[str, Any] | None = None,
        decoder: str = "lstm",
        decoder_conf: dict[str, Any] | None = None,
        joint_net_conf: dict[str, Any] | None = None,
        ctc_weight: float = 0.0,
        num_mels: int = 80,
    ):
        from espnet2.asr_transducer.joint_network import JointNetwork

        super().__init__()
        for key, value in (("stack", stack), ("stride", stride)):
            if not 1 <= value <= 100:
                raise PelasrError(f"{key}: {value} is not between 1 and 100")
        self.hears = LogMel(num_mels)
        self.stack, self.stride, self.ctc_weight = stack, stride, ctc_weight
        self.register_buffer("feature_mean", torch.zeros(num_mels))
        self.register_buffer("feature_std", torch.ones(num_mels))
        self.language_vector = LanguageVector(language_vector, num_languages, language_vector_size)
        input_size = num_mels * stack + self.language_vector.size
        if encoder == "lstm":
            self.encoder = construct(LSTMEncoder, encoder_conf, "encoder_conf", input_size=input_size)
        elif encoder in ESPNET_ENCODERS:
            self.encoder = ESPnetEncoder(encoder, input_size, encoder_conf or {})
        else:
            raise PelasrError(f"encoder: {encoder!r}; {nearest(encoder, ['lstm', *ESPNET_ENCODERS])}")
        if decoder == "lstm":
            self.prediction = construct(LSTMPrediction, decoder_conf, "decoder_conf", vocab_size=vocab_size)
        elif decoder == "transducer":
            self.prediction = ESPnetPrediction(vocab_size, **(decoder_conf or {}))
        else:
            raise PelasrError(f"decoder: {decoder!r}; {nearest(decoder, ['lstm', 'transducer'])}")
        # No bias on the prediction side: the encoder side's bias is added to the same sum.
        self.joint = construct(
            JointNetwork,
            joint_net_conf,
            "joint_net_conf",
            output_size=vocab_size,
            encoder_size=self.encoder.output_size,
            decoder_size=self.prediction.output_size,
            joint_activation_type="tanh",
            lin_dec_bias=False,
        )
        self.ctc = nn.Linear(self.encoder.output_size, vocab_size) if ctc_weight else None

    @property
    def encodes_language(self) -> bool:
        """If there is a language vector."""
        return self.language_vector.size > 0

    @property
    def subsampling(self) -> int:
        """By the stride of the frames and the encoder's own."""
        return self.stride * self.encoder.subsampling

    def sites(self) -> dict[str, dict[str, int]]:
        """Beside those of `module_sites`: `layer`, the encoder's layers, `prediction`, the ends of the prediction
        network's (which are not called as modules), `layer_norm`, the norms of both, `ffn` and `attention`, the
        encoder's, `input` and `top`, the whole encoder, and `encoder` and `decoder`, all that there is, to be
        fine-tuned.
        The output layers are `output` alone: the loss reads their weights."""
        width = self.encoder.output_size
        if isinstance(self.encoder, LSTMEncoder):
            inner = {"layer": {f"encoder.layers.{n}": width for n in range(len(self.encoder.layers))}}
        else:
            inner = espnet_sites(self.encoder, "encoder")
        encoder = {"encoder": width}
        if self.ctc is not None:
            encoder["ctc"] = self.ctc.out_features
        if self.language_vector.embedding is not None:
            encoder["language_vector"] = self.language_vector.size
        if isinstance(self.prediction, LSTMPrediction):
            after = [f"prediction.layers.{n}.norm" for n in range(len(self.prediction.layers))]
        else:
            after = [f"prediction.decoder.dropout_dec.{n}" for n in range(self.prediction.decoder.dlayers)]
        typed = module_sites(self, SITES, [*self.own_sites(), SHARED_BY_ROWS])
        return {
            "prediction": dict.fromkeys(after, self.prediction.output_size),
            **inner,
            "encoder": encoder,
            "input": {"encoder": width},
            "top": {"encoder": width},
            "decoder": {"prediction": self.prediction.output_size, "joint": self.joint.lin_out.in_features},
            **typed,
            **layer_norms(typed, [*inner["layer"], "prediction"]),
            **output_sites(self),
        }

    def own_sites(self) -> dict[str, str]:
        """The prediction network's embedding, the output layers and the language vector."""
        embedding = "prediction.embed" if isinstance(self.prediction, LSTMPrediction) else "prediction.decoder.embed"
        sites = {embedding: "embedding", OUTPUT_LAYER: "output"}
        if self.ctc is not None:
            sites["ctc"] = "output"
        return sites | ({"language_vector": "vector"} if self.encodes_language else {})

    def set_feature_stats(self, mean: Tensor, std: Tensor) -> None:
        """They are part of the saved backbone."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)

    def encode(
        self,
        feats: Tensor,
        lens: Tensor,
        language_ids: Tensor | None,
        augment: Augment | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backbone.encode`; normalised by the statistics of the training data."""
        x = (feats - self.feature_mean) / self.feature_std
        if augment is not None:
            x, lens = augment(x, lens)
        x, lens = stack_frames(x, lens, self.stack, self.stride)
        return self.encoder(self.language_vector(x, language_ids), lens)

    def predict(self, targets: Tensor) -> Tensor:
        """Prediction network over <start> and the labels: (B, U) to (B, U + 1, D)."""
        return self.prediction(F.pad(targets, (1, 0), value=BLANK))[0]

    def loss(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Loss:
        """The transducer's, and CTC's if there is any. `prefix` is not used: the language vector tells the language."""
        joint, encoded = self.joint, self.joint.lin_enc(enc)
        set_labels(within(target_lens + 1, targets.shape[1] + 1))
        transducer = transducer_loss(
            encoded,
            joint.lin_dec(self.predict(targets)),
            joint.lin_out.weight,
            shifted(OUTPUT_LAYER, joint.lin_out.bias, len(enc)),
            targets,
            enc_lens,
            target_lens,
            own_output(OUTPUT_LAYER, len(enc)),
        )
        if self.ctc is None:
            return Loss(transducer, {"rnnt": transducer})
        ctc = ctc_loss(self.ctc(enc), enc_lens, targets, target_lens)
        return Loss(transducer + self.ctc_weight * ctc, {"rnnt": transducer, "ctc": ctc})

    def logits(
        self, enc: Tensor, enc_lens: Tensor, targets: Tensor, target_lens: Tensor, prefix: Tensor | None = None
    ) -> Tensor:
        """Of the joint network's (B, T, U + 1, V) those along a straight path from the first frame and label to the
        last: (B, T, V)."""
        position = torch.arange(enc.shape[1], device=enc.device) * (targets.shape[1] + 1) // enc.shape[1]
        pred = self.joint.lin_dec(self.predict(targets))[:, position]
        return self.joint.lin_out((self.joint.lin_enc(enc) + pred).tanh())

    @torch.no_grad()
    def search(
        self, enc: Tensor, enc_lens: Tensor, prefix: Tensor | None = None, beam_size: int = 1
    ) -> list[Hypothesis]:
        """Greedy search over a batch of encoder outputs (B, T, D): the best label sequence of each and its score."""
        if beam_size != 1:
            raise PelasrError(f"--beam_size {beam_size}: an RNN-T is searched greedily, with 1")

        def predict(labels: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
            output, after = self.prediction(labels[:, None], state)
            return self.joint.lin_dec(output[:, 0]), after

        return greedy_search(self.joint.lin_enc(enc), enc_lens, predict, self.joint.lin_out)


BACKBONE: type[Backbone] = RNNT
