"""A toy backbone, and banks of every method on it."""

import torch
from torch import nn

from pelasr.adapters.bank import Bank

LANGUAGES = ["hi", "ur", "pa"]
ENCODERS = ["lstm", "conformer", "transformer"]
METHODS = {"houlsby": {"bottleneck": 4}, "lora": {"rank": 3, "alpha": 1.0}, "bitfit": {}}


def make_bank(backbone, languages=LANGUAGES, trained=True, seed=1, method="houlsby", **options):
    """A bank on the backbone; `trained` gives all parameters random values, so that it is not the identity."""
    torch.manual_seed(seed)
    bank = Bank(method, {**METHODS[method], **options}, backbone)
    for language in languages:
        bank.add(language)
    if trained:
        for parameter in bank.parameters():
            nn.init.normal_(parameter)
    return bank.eval()


def encode(model, batch, rows=None):
    """Encoder output of some rows of a batch, with the batch's own padding."""
    rows = list(range(len(batch)) if rows is None else rows)
    return model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])[0]


def logits(model, batch, rows=None):
    return model.joint.lin_out(model.joint.lin_enc(encode(model, batch, rows)).tanh())


def search(model, batch):
    return model.search(*model.encode(batch.feats, batch.lens, batch.language_ids))


def loss(model, batch, rows=None):
    rows = list(range(len(batch)) if rows is None else rows)
    enc, lens = model.encode(batch.feats[rows], batch.lens[rows], batch.language_ids[rows])
    return model.loss(enc, lens, batch.targets[rows], batch.target_lens[rows]).total


def train(model, bank, batch, steps=3):
    """AdamW with weight decay over all the bank's parameters; returns it."""
    optimizer = torch.optim.AdamW(bank.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with bank.route(batch.languages):
            loss(model, batch).sum().backward()
        optimizer.step()
    return optimizer


class Toy(nn.Module):
    """Layers that return what real ones do, with BatchNorm and dropout, and one that is never called."""

    def __init__(self, shape="x", width=4):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.host, self.idle = Host(shape, width), nn.Linear(width, width)
        self.width = width

    def forward(self, x):
        x = self.dropout(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))
        return self.host(x)

    def sites(self):
        return {"layer": {"host": self.width}, "idle": {"host": self.width, "idle": self.width}}


class Host(nn.Linear):
    def __init__(self, shape, width):
        super().__init__(width, width)
        self.shape = shape

    def forward(self, x):
        y = super().forward(x)
        return {"x": y, "mask": (y, "mask"), "pos": ((y, "pos"), "mask")}[self.shape]
