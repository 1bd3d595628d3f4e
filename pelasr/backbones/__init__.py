"""Backbone families, one file each; building, saving and loading them."""

import hashlib
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pelasr.config import arguments_of, construct, nearest
from pelasr.encoders import settled
from pelasr.errors import PelasrError, brief
from pelasr.files import atomic_write, sha256_file
from pelasr.private import install
from pelasr.sealed import read_description, write_description
from pelasr.text import Tokenizer

GIVEN = ("vocab_size", "num_languages")  # what the data decide, not the configuration
KEYS = {"backbone": str, "options": dict, "languages": list, "tokens_sha256": str, "weights": dict}  # of a description
CURE = "restore it, or delete the folder and train again"


@dataclass
class LoadedBackbone:
    """A trained backbone with what belongs to it; `sha256` binds packs to its tensors."""

    module: Any
    tokenizer: Tokenizer
    languages: list[str]
    sha256: str
    facts: dict[str, Any]


def find_backbone(name: str) -> type:
    """The class `BACKBONE` of `pelasr/backbones/<name>.py`; an unknown name is an error that lists the folder."""
    known = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"]
    if name not in known:
        raise PelasrError(f"backbone: no family {name!r}; {nearest(name, known)}")
    return import_module(f"pelasr.backbones.{name}").BACKBONE


def backbone_options(name: str) -> list[str]:
    """Configuration keys of a family: the arguments of its constructor."""
    return [key for key in arguments_of(find_backbone(name)) if key not in GIVEN]


def build_backbone(name: str, options: dict[str, Any], vocab_size: int, num_languages: int) -> Any:
    """A fresh backbone with random weights."""
    cls = find_backbone(name)
    module = construct(cls, options, f"backbone {name}", vocab_size=vocab_size, num_languages=num_languages)
    install(module)
    return module


def state_sha256(state: dict[str, Any]) -> str:
    """Hash of names, types, shapes and bytes of tensors, wherever they are stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, state: dict[str, Any]) -> None:
    """Write tensors as safetensors, atomically."""
    from safetensors.torch import save

    with atomic_write(path, "wb") as stream:
        stream.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}))


def load_weights(
    path: Path, sha256: str | None = None, cure: str = "restore it, or delete it and run the stage that makes it"
) -> dict[str, Any]:
    """Read tensors from safetensors.

    Raises PelasrError if the file is absent or damaged, or its bytes do not have the hash that is asked for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise PelasrError(f"{path}: no such file; run the stage that makes it")
    if sha256 is not None and sha256_file(path) != sha256:
        raise PelasrError(f"{path}: not the file that was described: incomplete or altered; {cure}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PelasrError(f"{path}: damaged ({brief(error, 200)}); {cure}") from None


def describe_backbone(
    folder: Path, name: str, options: dict[str, Any], languages: list[str], tokens: Path, facts: dict[str, Any]
) -> None:
    """Write `backbone.yaml`, which has the hash of each file of weights in the folder, and a copy of the tokens."""
    shutil.copytree(tokens, folder / "tokens", dirs_exist_ok=True)
    description = {
        "backbone": name,
        "options": settled(options),
        "languages": languages,
        "tokens_sha256": Tokenizer.load(tokens).sha256,
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
    description = _read_backbone(folder)
    tokenizer = Tokenizer.load(folder / "tokens")
    if tokenizer.sha256 != description["tokens_sha256"]:
        raise PelasrError(f"{folder}/tokens: not the token list that {folder}/backbone.yaml was trained with; {CURE}")
    path = folder / f"{weights}.safetensors"
    state = _read_weights(path, description)
    languages = description["languages"]
    module = build_backbone(description["backbone"], description["options"], len(tokenizer.tokens), len(languages))
    check_tensors(state, module.state_dict(), str(path))
    module.load_state_dict(state)
    module.eval()
    return LoadedBackbone(module, tokenizer, languages, state_sha256(state), description)


def _read_backbone(folder: Path) -> dict[str, Any]:
    path = folder / "backbone.yaml"
    description = read_description(path, CURE)
    for key, kind in KEYS.items():
        if key not in description:
            raise PelasrError(f"{path}: the key {key!r} is missing; {CURE}")
        if not isinstance(description[key], kind):
            raise PelasrError(f"{path}: {key}: expected a {kind.__name__}, found {brief(description[key])}; {CURE}")
    if settled(description["options"]) != description["options"]:
        raise PelasrError(
            f"{path}: options: encoder_conf says no rel_pos_type: the Conformer is of a time when the default were"
            " ESPnet's old positions, by which an utterance's output depends on what pads its batch; delete the folder"
            " and train again"
        )
    return description


def _read_weights(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    known = description["weights"]
    if path.stem not in known:
        raise PelasrError(f"{path.parent}/backbone.yaml: has no weights {path.stem!r}; {nearest(path.stem, known)}")
    return load_weights(path, known[path.stem])


def load_encoder(module: Any, folder: Path) -> None:
    """Give a backbone the encoder of another one, trained in `folder`.

    Raises PelasrError where its weights are not as they were saved, or the two encoders differ, naming the first
    tensor.
    """
    path = folder / "backbone.safetensors"
    state = _read_weights(path, _read_backbone(folder))
    found = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    own = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("encoder.")}
    check_tensors(found, own, str(path))
    module.load_state_dict(found, strict=False)


def check_tensors(found: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Strict in both directions: PelasrError naming the first missing, unexpected, misshapen or non-finite one."""
    for name in sorted({*found, *expected}):
        if name not in found:
            raise PelasrError(f"{where}: tensor {name} is missing")
        if name not in expected:
            raise PelasrError(f"{where}: tensor {brief(name, 100)} is unexpected")
        if found[name].shape != expected[name].shape or found[name].dtype != expected[name].dtype:
            shapes = [f"{tuple(t.shape)} {t.dtype}" for t in (found[name], expected[name])]
            raise PelasrError(f"{where}: tensor {name} is {shapes[0]}, expected {shapes[1]}")
        if found[name].is_floating_point() and not bool(found[name].isfinite().all()):
            raise PelasrError(f"{where}: tensor {name} holds NaN or infinity")
