"""Every method on every family of backbones: the one table of what is expected, tiny models, and the page's table.

PYTHONPATH=.:tests/helpers python tests/helpers/method_matrix.py      writes the table of docs/methods.md anew
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from documents import ROOT
from torch import Tensor

from pelasr.adapters.finetune import make_bank
from pelasr.adapters.freeze import freeze
from pelasr.adapters.own import HEAD, OwnParts, install
from pelasr.backbones.base import Backbone

PAGE = ROOT / "docs/methods.md"
BEGIN, END = "<!-- tests/helpers/method_matrix.py writes this table -->\n", "<!-- end of the table -->\n"
LANGUAGES = ["hi", "ur", "pa"]
ROWS = ["ur", "hi", "pa", "ur"]  # of the batch
TARGETS, COUNTS = torch.tensor([[2, 3, 1], [1, 2, 4], [4, 1, 3], [3, 1, 2]]), torch.tensor([3, 2, 3, 1])


@dataclass(frozen=True)
class Method:
    """What is expected of a method: with which `options`, why a fresh one changes anything (`differs`; empty: it does
    not), and on which families it is `refused`, with which words of the error. `own`: its file is the page's."""

    options: dict[str, Any] = field(default_factory=dict)
    differs: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    own: bool = False
    file: str = ""


FAMILIES = (
    "rnnt lstm",
    "rnnt conformer",
    "st transformer",
    "st conformer",
    "st e_branchformer",
    "ctc conformer",
    "ctc hubert",
    "ctc wavlm",
    "ctc wav2vec2",
    "ctc wav2vec2_bert",
)
NO_DECODER = {name: "needs a site 'decoder'" for name in FAMILIES if name.startswith("ctc")}
LSTM = "rnnt lstm"
SHARED = FAMILIES[1:6]  # output layers and decoders
UNSEEN = "what it puts in the place of the top layer a shared output layer or decoder has never seen"
NO_WAVEFORM = (*FAMILIES[:6], "ctc wav2vec2_bert")
WAVEFORM = "only pretrained encoders that hear a waveform begin with such convolutions"
DRAWN = "its prefix is drawn"
METHODS = {
    "houlsby": Method({"bottleneck": 3}),
    "parallel": Method({"bottleneck": 3}, refused={LSTM: "an LSTM has no feed-forward sub-layers"}),
    "lora": Method({"rank": 2}),
    "dora": Method({"rank": 2, "dora": True}, file="lora"),
    "bitfit": Method(),
    "norm": Method(),
    "adapterbias": Method(refused={LSTM: "an LSTM has no feed-forward sub-layers"}),
    "prefix": Method({"frames": 2, "network": 3}, differs=DRAWN, refused={LSTM: "an LSTM has no attention"}),
    "mam": Method({"frames": 2, "bottleneck": 3}, differs=DRAWN, refused={LSTM: "an LSTM has no attention"}),
    "conv": Method({"reduction": 2}),
    "cnn": Method(refused=dict.fromkeys(NO_WAVEFORM, WAVEFORM)),
    "chapter": Method({"bottleneck": 3}, refused=dict.fromkeys(NO_WAVEFORM, WAVEFORM)),
    "layerwise": Method(
        {"bottleneck": 3, "features": 5},
        differs="its features are others than the top layer's",
        refused={LSTM: "it is for layers with feed-forward sub-layers and layer norms"} | dict.fromkeys(SHARED, UNSEEN),
    ),
    "output": Method(),
    "decoder": Method(refused=NO_DECODER),
    "full": Method(),
    "ladder": Method({"reduction": 2}),
    "reprogramming": Method({"frames": 8}),
    "simadapter": Method({"method": "houlsby", "method_conf": {"bottleneck": 3}, "sources": ["hi", "ur"]}),
    "ia3": Method(own=True),
}
KINDS = {"hubert": "hubert", "wavlm": "wavlm", "wav2vec2": "wav2vec2_stable", "wav2vec2_bert": "bert_relative_key"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


@dataclass(frozen=True)
class Family:
    """A frozen model in evaluation mode, and what it hears of the rows: (B, T, C), (B,)."""

    name: str
    model: Backbone
    feats: Tensor
    lens: Tensor
    heads: bool  # whether languages bring whole output layers
    shared: int  # tokens

    def encode(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Of some rows, padded as all are."""
        return self.model.encode(self.feats[rows], self.lens[rows], torch.zeros(len(rows), dtype=torch.long))

    def loss(self, rows: list[int]) -> Tensor:
        return self.model.loss(*self.encode(rows), TARGETS[rows], COUNTS[rows]).total

    def out(self, rows: list[int]) -> Tensor:
        """What comes of some rows: logits of the shared tokens, or without an output layer what it would see."""
        enc, lens = self.encode(rows)
        return enc if self.heads else self.model.logits(enc, lens, TARGETS[rows], COUNTS[rows])[..., : self.shared]

    def bank(self, name: str, languages: list[str] = LANGUAGES, **options: Any) -> Any:
        """Of a method of the table, fresh, in evaluation mode. The last language has a token of its own."""
        torch.manual_seed(2)
        bank = make_bank(METHODS[name].file or name, {**METHODS[name].options, **options}, self.model)
        for language in languages:
            own = OwnParts(self.model, ["a"], vector=language == LANGUAGES[-1])
            own.start_from(self.model, [[1]], [0])  # with the vector that all rows have
            bank.add(language, own if self.heads or own.vector or language == LANGUAGES[-1] else None)
        return bank.eval()


@cache
def family(name: str) -> Family:
    """The tiny model of this name, made once, with noise to hear."""
    from random_models import MELS, make_rnnt, make_st
    from tiny_models import ENCODERS, VOCABULARY
    from tiny_pretrained import TINY

    from pelasr.backbones.base import build_backbone

    kind, encoder = name.split()
    width, lens = MELS, [31, 28, 25, 31]
    if kind != "ctc":
        model = {"rnnt": make_rnnt, "st": make_st}[kind](encoder, vocab_size=VOCABULARY)
        install(model)
    elif encoder == "conformer":
        width = 12
        conf = {"encoder": encoder, "encoder_conf": ENCODERS[encoder], "num_mels": width}
        model = build_backbone("ctc", conf, VOCABULARY, len(LANGUAGES))
    else:
        made, conf = TINY[KINDS[encoder]]
        more = {"feature_projection_input_dim": 160} if encoder == "wav2vec2_bert" else {"num_conv_pos_embeddings": 4}
        torch.manual_seed(0)
        conf = {"encoder": made, "encoder_conf": {**conf, **SMALL, **more}, "objective": "none"}
        model = build_backbone("ctc", conf, VOCABULARY, len(LANGUAGES))
        width, lens = (160, [13, 11, 9, 13]) if encoder == "wav2vec2_bert" else (1, [2700, 2400, 2000, 2700])
    freeze(model)
    feats = torch.randn(len(ROWS), max(lens), width, generator=torch.Generator().manual_seed(0))
    return Family(name, model.eval(), feats, torch.tensor(lens), HEAD in model.own_sites().values(), VOCABULARY)


def table() -> str:
    """The page's table: a row for each method, a column for each family, with reasons below."""
    reasons: list[str] = []

    def note(reason: str) -> str:
        if reason and reason not in reasons:
            reasons.append(reason)
        return str(reasons.index(reason) + 1) if reason else "yes"

    columns = ["method", *FAMILIES, "starts as the backbone"]
    lines = [f"|{'|'.join(columns)}|", f"|{'---|' * len(columns)}"]
    for name, method in METHODS.items():
        shown = f"`{method.file}`, `{name}`" if method.file else f"`{name}`"
        cells = [note(method.refused.get(each, "")) for each in FAMILIES]
        lines.append(f"|{'|'.join([shown, *cells, note(method.differs)])}|")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""])


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    write()
