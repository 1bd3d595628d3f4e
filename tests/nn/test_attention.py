"""Attention whose maps of keys and values may put out a prefix: its own toolkit's numbers without one, and by hand
with one."""

import math
from importlib import import_module

import pytest
import torch
from tiny_models import ST_ENCODERS
from tiny_pretrained import CLASSES, TINY, make_ours
from torch import nn

from pelasr.nn.espnet import ESPnetEncoder

PREFIX, FRAMES = 3, 7
PRETRAINED = [kind for kind in TINY if "stable" not in kind and "batch_norm" not in kind]
KINDS = [*ST_ENCODERS, *PRETRAINED]


def first_attention(kind):
    """The first attention module of an encoder, with random weights, what it is given beside frames and mask, its maps
    of queries, keys and values, and the number of its heads."""
    torch.manual_seed(0)
    if kind in ST_ENCODERS:
        module = ESPnetEncoder(kind, 6, {**ST_ENCODERS[kind], "input_layer": None}).eval()
    else:
        module = make_ours(kind)
    attention = next(part for part in module.modules() if hasattr(part, "linear_q") or hasattr(part, "q_proj"))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    names = "{}_proj" if hasattr(attention, "q_proj") else "linear_{}"
    maps = [attention.get_submodule(names.format(name)) for name in "qkv"]
    x = torch.randn(2, FRAMES, maps[0].in_features)
    positions = None
    if kind in ST_ENCODERS and hasattr(attention, "linear_pos"):
        positions = next(part for part in module.modules() if hasattr(part, "extend_pe"))(x)[1]
    elif kind.startswith("bert"):
        positions = None if module.encoder.position is None else module.encoder.position(x)
    return attention, x, positions, maps, 2 if kind in ST_ENCODERS else 4


def call(attention, x, positions, seen):
    """With keys that may be seen (B, N), None for all."""
    if hasattr(attention, "forward_qkv"):
        return attention(x, x, x, *([] if positions is None else [positions]), seen[:, None])
    given = {} if positions is None else {"relative_position_embeddings": positions}
    return attention(x, attention_mask=None if seen is None else seen[:, None, None], **given)[0]


def bias_of(attention, x, positions, q):
    """What positions add to the scores of queries (B, H, T, size), before any prefix; tested without one, below."""
    if hasattr(attention, "gru_rel_pos_linear"):
        return attention._gate(attention._split(x)) * attention.bias_by_distance(FRAMES)
    if hasattr(attention, "rel_shift"):
        p = attention.linear_pos(positions).unflatten(2, (attention.h, -1)).transpose(1, 2)
        return attention.rel_shift((q + attention.pos_bias_v[:, None]) @ p.mT) / math.sqrt(q.shape[-1])
    if getattr(attention, "position_embeddings_type", None) == "relative":
        return attention._by_distance(q + attention.pos_bias_v[:, None], positions)
    if getattr(attention, "position_embeddings_type", None) == "relative_key":
        return attention._by_near_distance(q)
    return 0.0


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_prefix_by_hand(kind, padded):
    """One softmax over the scores of the prefix, which have no position, and of the frames, which have theirs."""
    attention, x, positions, (to_q, to_k, to_v), heads = first_attention(kind)
    keys, values = torch.randn(2, 2, PREFIX, x.shape[2])
    seen = torch.ones(2, PREFIX + FRAMES, dtype=torch.bool)
    seen[1, PREFIX + 4 :] = not padded
    turned = x
    if getattr(attention, "position_embeddings_type", None) == "rotary":
        turned = attention._rotated(x, positions)
    q, k, v = (
        part.unflatten(2, (heads, -1)).transpose(1, 2)
        for part in (to_q(turned), torch.cat([keys, to_k(turned)], 1), torch.cat([values, to_v(x)], 1))
    )
    content = (q + attention.pos_bias_u[:, None] if hasattr(attention, "pos_bias_u") else q) @ k.mT
    scores = content / math.sqrt(q.shape[-1])
    scores[..., PREFIX:] += bias_of(attention, x, positions, q)
    found = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1) @ v
    out = getattr(attention, "out_proj", None) or attention.linear_out
    wanted = out(found.transpose(1, 2).flatten(2))
    to_k.register_forward_hook(lambda host, args, y: torch.cat([keys, y], dim=1))
    to_v.register_forward_hook(lambda host, args, y: torch.cat([values, y], dim=1))
    shown = seen if padded or kind in ST_ENCODERS else None
    torch.testing.assert_close(call(attention, x, positions, shown), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("wavlm", "transformer")])
@torch.no_grad()
def test_without_a_prefix_it_is_the_toolkits(kind, dtype):
    """Bit for bit."""
    attention, x, positions, *_ = first_attention(kind)
    attention, x = attention.to(dtype), x.to(dtype)
    positions = None if positions is None else positions.to(dtype)
    if kind in ST_ENCODERS:
        theirs = import_module("espnet.nets.pytorch_backend.transformer.attention").RelPositionMultiHeadedAttention
    else:
        name = TINY[kind][0]
        module = import_module(f"transformers.models.{name}.modeling_{name}")
        theirs = getattr(module, f"{CLASSES[name]}{'SelfAttention' if kind.startswith('bert') else 'Attention'}")
    seen = torch.ones(2, FRAMES, dtype=torch.bool)
    seen[1, 4:] = False
    masks = seen, seen | True if kind in ST_ENCODERS else None
    found = [call(attention, x, positions, shown) for shown in masks]
    assert type(attention) is not theirs
    attention.__class__ = theirs
    for output, shown in zip(found, masks, strict=True):
        assert torch.equal(output, call(attention, x, positions, shown)) and output.isfinite().all()
