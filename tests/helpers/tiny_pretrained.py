"""Folders of tiny pretrained encoders with random weights, as transformers stores them, one of each family and kind."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
CONV = {**LAYERS, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
BUCKETS = {"num_buckets": 20, "max_bucket_distance": 30}
BERT = {**LAYERS, "feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 5}
NEAR = {"left_max_position_embeddings": 6, "right_max_position_embeddings": 2}
TINY: dict[str, tuple[str, dict[str, Any]]] = {  # encoder and its `encoder_conf`
    "wav2vec2": ("wav2vec2", CONV),
    "wav2vec2_stable": ("wav2vec2", {**CONV, **STABLE}),
    "hubert": ("hubert", CONV),
    "hubert_stable": ("hubert", {**CONV, **STABLE}),
    "hubert_batch_norm": ("hubert", {**CONV, "conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "wavlm": ("wavlm", {**CONV, **BUCKETS}),
    "wavlm_stable": ("wavlm", {**CONV, **STABLE, **BUCKETS}),
    "bert_relative_key": ("wav2vec2_bert", {**BERT, **NEAR}),
    "bert_relative": ("wav2vec2_bert", {**BERT, "position_embeddings_type": "relative"}),
    "bert_rotary": ("wav2vec2_bert", {**BERT, "position_embeddings_type": "rotary"}),
    "bert_no_positions": ("wav2vec2_bert", {**BERT, "position_embeddings_type": None}),
}
CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "wav2vec2_bert": "Wav2Vec2Bert"}
MMS_TOKENS = {  # of two languages, whose blank, the pad token, is not the same
    "hin": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "क": 5, "ख": 6},
    "tel": {"|": 0, "క": 1, "<pad>": 2, "<s>": 3, "</s>": 4, "<unk>": 5},
}


@torch.no_grad()
def make_model(kind: str, head: str = "Model", **more: Any) -> Any:
    """transformers' model of a kind with random weights, norms and biases too, in eval mode."""
    import transformers

    encoder, conf = TINY[kind]
    name = CLASSES[encoder]
    if head == "ForCTC":
        more.setdefault("vocab_size", 8)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**conf, **more)
    model = getattr(transformers, f"{name}{head}")(config)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@cache
@torch.inference_mode(False)
def oracle(kind: str) -> Any:
    """`make_model(kind)`, to be read only."""
    return make_model(kind)


def save_model(kind: str, folder: Path, head: str = "Model", **options: Any) -> Path:
    """A folder as transformers stores it, with its preprocessor's file."""
    make_model(kind, head).save_pretrained(folder, **options)
    described = {"do_normalize": kind.endswith("stable"), "sampling_rate": 16000, "return_attention_mask": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


@torch.no_grad()
def save_mms(folder: Path) -> Path:
    """A tiny MMS: the adapters and output layers of two languages in files of their own, a nested vocabulary."""
    from safetensors.torch import save_file

    for number, (language, tokens) in enumerate(MMS_TOKENS.items()):
        model = make_model("wav2vec2_stable", "ForCTC", adapter_attn_dim=4, vocab_size=len(tokens))
        torch.manual_seed(number)
        own: dict[str, Tensor] = model._get_adapters()
        for tensor in own.values():
            tensor += 0.3 * torch.randn_like(tensor)
        if number == 0:
            model.save_pretrained(folder)
        own = {name: tensor.detach().clone() for name, tensor in own.items()}
        save_file(own, folder / f"adapter.{language}.safetensors")
    (folder / "vocab.json").write_text(json.dumps(MMS_TOKENS, ensure_ascii=False), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
    return folder


def make_ours(kind: str, **more: Any) -> Any:
    """Ours of the same kind, with fresh weights, in eval mode: `frontend` where there is one, `encoder`,
    `mask_embedding`."""
    from pelasr.nn.speech_encoder import make_encoder, make_frontend

    encoder, conf = TINY[kind]
    module = nn.Module()
    frontend = make_frontend(encoder, conf | more)
    if frontend is not None:
        module.frontend = frontend
    module.encoder = make_encoder(encoder, conf | more)
    module.mask_embedding = nn.Parameter(torch.zeros(LAYERS["hidden_size"]))
    return module.eval()


def same_as_theirs(kind: str, **more: Any) -> Any:
    """`make_ours` with the weights of `oracle`."""
    from pelasr.backbones.pretrained import file_names

    module, state = make_ours(kind, **more), oracle(kind).state_dict()
    module.load_state_dict({own: state[theirs] for own, theirs in file_names(module).items()})
    return module


def audio_of(kind: str, lens: list[int], beyond: float = 77.0) -> tuple[Tensor, Tensor]:
    """Noise (B, N, C) for a kind of so many samples, or frames where it hears frames; large numbers beyond each end."""
    width = TINY[kind][1].get("feature_projection_input_dim", 1)
    x = torch.randn(len(lens), max(lens), width, generator=torch.Generator().manual_seed(1))
    for row, size in zip(x, lens, strict=True):
        row[size:] = beyond
    return x, torch.tensor(lens)


def states_of(module: Any, x: Tensor, lens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Hidden states and frames of ours."""
    frames, number = module.frontend(x, lens) if hasattr(module, "frontend") else (x, lens)
    return module.encoder(frames, number), number


@torch.no_grad()
def their_states(kind: str, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Hidden states of transformers' model; the last one is the model's output."""
    heard = x if TINY[kind][0] == "wav2vec2_bert" else x[..., 0]
    out = oracle(kind)(heard, attention_mask=mask, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]
