"""Backbone families, one file each; building, saving and loading them."""

import hashlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pelasr.adapters.own import install
from pelasr.backbone_format import CURE, check_options, read_backbone
from pelasr.config import LIMIT, arguments_of, construct, nearest
from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError, TooShortError, brief
from pelasr.files import atomic_write, check_holes, no_file, open_file, sha256_file
from pelasr.nn.defaults import settled
from pelasr.storage import write_description

GIVEN = ("vocab_size", "num_languages")  # what the data decide, not the configuration
TENSOR = 50  # bytes of a tensor in the header of a file of weights, at least
STEPS = 10  # calls of torch to make a tensor and its first values, at most


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
        raise PelasrError(f"backbone: no family {brief(name)!r}; {nearest(name, known)}")
    return import_module(f"pelasr.backbones.{name}").BACKBONE


def backbone_options(name: str) -> list[str]:
    """Configuration keys of a family: the arguments of its constructor."""
    return [key for key in arguments_of(find_backbone(name)) if key not in GIVEN]


def build_backbone(name: str, options: dict[str, Any], vocab_size: int, num_languages: int) -> Any:
    """A fresh backbone with random weights."""
    cls = find_backbone(name)
    check_options(options, f"backbone {name}")
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

    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; run the stage that makes it")
    try:
        check_holes(path)
        if sha256 is not None and sha256_file(path) != sha256:
            raise PelasrError(f"{path}: not the file that was described: incomplete or altered; {cure}")
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise PelasrError(f"{path}: damaged ({brief(error, 200)}); {cure}") from None


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
    if tokenizer.sha256 != description["tokens_sha256"]:
        raise PelasrError(f"{folder}/tokens: not the token list that {folder}/backbone.yaml was trained with; {CURE}")
    path = folder / f"{weights}.safetensors"
    family, options, languages = (description[key] for key in ("backbone", "options", "languages"))
    given = family, options, len(tokenizer.tokens), len(languages)
    bounds = Bounds(path)
    try:
        with bounds, torch.device("meta"):
            expected = build_backbone(*given).state_dict()
    except PelasrError as error:
        raise PelasrError(f"{folder}/backbone.yaml: {error}") from None
    check_size(path, expected, CURE)
    state = _read_weights(path, description)
    check_tensors(state, expected, str(path))
    module = build_backbone(*given)
    module.load_state_dict(state)
    module.eval()
    _try(module, options, len(languages), f"{folder}/backbone.yaml")
    return LoadedBackbone(module, tokenizer, languages, state_sha256(state), description)


@torch.no_grad()
def _try(module: torch.nn.Module, options: dict[str, Any], languages: int, where: str) -> None:
    """Raise PelasrError for a backbone that cannot be run: options may fit the weights and not each other."""
    feats, frames, label = torch.zeros(1, 200, options.get("num_mels", 80)), torch.tensor([200]), torch.tensor([1])
    try:
        enc, enc_lens = module.encode(feats, frames, torch.tensor([languages - 1]))
        module.logits(enc, enc_lens, label[None], label)
    except TooShortError:
        return
    except Exception as error:  # whatever torch says of it, the options are at fault
        raise PelasrError(f"{where}: options: no model can be run with them ({brief(error, 200)}); {CURE}") from None


class Bounds(TorchFunctionMode):
    """Inside the block a PelasrError ends what makes more tensors, or larger ones, than a file of weights can hold:
    options from anywhere may ask for any number of layers of any size. To be used on torch's `meta` device."""

    def __init__(self, path: Path):
        super().__init__()
        header, size = sizes(path)
        self.steps = 1000 + STEPS * (min(header, size, LIMIT) // TENSOR)
        self.elements = (1 << 26) + 4 * size  # tables of positions are in no file

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.steps -= 1
        if isinstance(made, torch.Tensor):
            self.elements -= made.numel()
        if self.steps < 0 or self.elements < 0:
            raise PelasrError("its options ask for more or larger tensors than its file of weights has")
        return made


def sizes(path: Path, cure: str = "run the stage that makes it") -> tuple[int, int]:
    """Bytes of the header of a file of weights, as it says, and of the file. Raises PelasrError if there is none."""
    if missing := no_file(path):
        raise PelasrError(f"{path}: {missing}; {cure}")
    with open_file(path) as stream:
        return int.from_bytes(stream.read(8), "little"), path.stat().st_size


def check_size(path: Path, expected: dict[str, Any], cure: str) -> None:
    """Raise PelasrError for a file that is larger than its tensors and a header can be, before it is read."""
    header, size = sizes(path, cure)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
    if header > LIMIT or size > 8 + LIMIT + needed:
        raise PelasrError(
            f"{path}: damaged: {size} bytes with a header of {header}, where the tensors need {needed}; {cure}"
        )


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
    state = _read_weights(path, read_backbone(folder))
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
