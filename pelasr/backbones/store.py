"""Trained backbones in their folders: described, saved, loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pelasr.adapters.own import HEAD
from pelasr.backbones.base import Backbone, build_backbone, heard_with
from pelasr.backbones.bounds import Bounds
from pelasr.backbones.format import CURE, BackboneDescription, read_backbone
from pelasr.data.hears import RATE, Hears
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError, TooShortError, brief, nearest
from pelasr.files import sha256_file
from pelasr.nn.defaults import settled
from pelasr.storage import check_size, check_tensors, load_weights, state_sha256, write_description


@dataclass
class LoadedBackbone:
    """A trained backbone with what belongs to it; `sha256` binds packs to its tensors."""

    module: Backbone
    tokenizer: Tokenizer
    languages: list[str]
    sha256: str
    description: BackboneDescription


def describe_backbone(
    folder: Path, name: str, options: dict[str, Any], languages: list[str], tokens: Path, facts: dict[str, Any]
) -> None:
    """Write `backbone.yaml`, which has the hash of each file of weights in the folder, and a copy of the tokens."""
    tokenizer = Tokenizer.load(tokens)
    tokenizer.save(folder / "tokens")
    description = {
        "backbone": name,
        "options": settled(options),
        "languages": languages,
        "tokens_sha256": tokenizer.sha256,
        "hears": heard_with(name, options).facts(),
        "weights": {path.stem: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        **facts,
    }
    write_description(folder / "backbone.yaml", description)


def load_backbone(folder: str | Path, weights: str = "backbone") -> LoadedBackbone:
    """Load a trained backbone from its experiment's folder.

    Raises PelasrError where a file is absent or not as it was saved, or the tensors are not those of the description,
    naming the first that differs.
    """
    folder = Path(folder)
    description = read_backbone(folder)
    tokenizer = Tokenizer.load(folder / "tokens")
    if tokenizer.sha256 != description.tokens_sha256:
        raise PelasrError(f"{folder}/tokens: not the token list that {folder}/backbone.yaml was trained with; {CURE}")
    path = folder / f"{weights}.safetensors"
    languages = description.languages
    expected = _outline(path, description, len(tokenizer.tokens)).state_dict()
    check_size(path, expected, CURE)
    state = _read_weights(path, description)
    check_tensors(state, expected, str(path))
    module = build_backbone(description.backbone, description.options, len(tokenizer.tokens), len(languages))
    module.load_state_dict(state)
    module.eval()
    _try(module, len(languages), f"{folder}/backbone.yaml")
    return LoadedBackbone(module, tokenizer, languages, state_sha256(state), description)


def heard_by(folder: Path, weights: str = "backbone") -> Hears:
    """What a trained backbone hears, whose weights are not read."""
    return _outline(folder / f"{weights}.safetensors", read_backbone(folder), 3).hears


def _outline(path: Path, description: BackboneDescription, tokens: int) -> Backbone:
    """A backbone without its weights, which is no larger than their file can be."""
    bounds = Bounds([path])
    try:
        with bounds, torch.device("meta"):
            return build_backbone(description.backbone, description.options, tokens, len(description.languages))
    except PelasrError as error:
        raise PelasrError(f"{path.parent}/backbone.yaml: {error}") from None


@torch.no_grad()
def _try(module: Backbone, languages: int, where: str) -> None:
    """Raise PelasrError for a backbone that cannot be run: options may fit the weights and not each other."""
    rows, label = module.hears.rows(2 * RATE), torch.tensor([1])
    feats, frames = torch.zeros(1, rows, module.hears.channels), torch.tensor([rows])
    try:
        enc, enc_lens = module.encode(feats, frames, torch.tensor([languages - 1]))
        if HEAD not in module.own_sites().values():
            module.logits(enc, enc_lens, label[None], label)
    except TooShortError:
        return
    except Exception as error:  # whatever torch says of it, the options are at fault
        raise PelasrError(f"{where}: options: no model can be run with them ({brief(error, 200)}); {CURE}") from None


def _read_weights(path: Path, description: BackboneDescription) -> dict[str, Any]:
    known = description.weights
    if path.stem not in known:
        raise PelasrError(f"{path.parent}/backbone.yaml: has no weights {path.stem!r}; {nearest(path.stem, known)}")
    return load_weights(path, known[path.stem])


def load_encoder(module: Backbone, folder: Path) -> None:
    """Give a backbone the encoder's side of another one, trained in `folder`.

    Raises PelasrError where its weights are not as they were saved, or the two encoders differ, naming the first
    tensor.
    """
    path = folder / "backbone.safetensors"
    state = _read_weights(path, read_backbone(folder))
    found = {name: tensor for name, tensor in state.items() if module.side(name) == "encoder"}
    own = {name: tensor for name, tensor in module.state_dict().items() if module.side(name) == "encoder"}
    check_tensors(found, own, str(path))
    module.load_state_dict(found, strict=False)
