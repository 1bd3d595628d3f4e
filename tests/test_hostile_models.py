"""Model folders and packs that another hand made, with the right hashes: each is refused in a line, or does no harm."""

import copy
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from hostile import refusal
from tiny_speech import make_recogniser, make_translator, noise

import pelasr
from pelasr.data.tokenizer import Tokenizer, train_unigram
from pelasr.files import sha256_file, sha256_json
from pelasr.packs.manage import export_pack, fold_pack, import_pack, list_packs, show_pack, verify_packs
from pelasr.stages.experiment import load_experiments
from pelasr.tasks.base import task_of

LONG = "x" * 9000
VALUES = [None, True, False, 0, 1, -1, 2, 3, 17, 255, 16384, 100_000, 2**31, 2**63, 10**300, 0.0, -0.5, 1.5, 1e308]
VALUES += [float("inf"), float("nan"), "", "a", "5", "1e-3", "null", "../../etc/passwd", "/dev/zero", "a\0b", "\x1b[2J"]
VALUES += ["hi", "en-de", "lstm", "conformer", "transducer", "houlsby", "lora", "full", "__init__", "‮", "\ufeff", LONG]
VALUES += [[], {}, [[]], [1, [2, [3]]], {"a": {"b": 1}}, {5: 6}, ["hi"] * 3, [LONG] * 9, {"encoder": 1, "decoder": {}}]
VALUES += ["a" * 64, "A" * 64, {"backbone": "a" * 64}, ["hi", "../x", "pa"], list(range(1000)), "2024-01-01"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Experiments A1, a backbone, A5, packs on it, and 2, a translator with pieces; all modules are imported."""
    folder = tmp_path_factory.mktemp("made")
    make_recogniser(folder / "asr")
    make_translator(folder / "st")
    texts = ["the cat sat on the mat", "a dog ran", "birds sing songs"] * 9
    train_unigram(texts, 24, folder / "pieces", ["<lang:de>", "<lang:fr>"])
    for which in ("asr", "st"):
        shutil.copytree(folder / which, folder / "used" / which)
        for number in range(9):
            found = use(folder / "used" / which, number)
            assert not any(found.values()) or "cannot be folded" in found["fold"], found
    return folder


def use(exp, number):
    """What is done with an experiments folder, by turns; the refusal of each."""
    packs = [exp / "A5/packs/hi", exp / "A5/packs/uk"]
    if (exp / "2").is_dir():
        calls = {"translator": lambda: pelasr.load(exp / "2").decode([noise(0.4)], "en-de")}
    else:
        others = {
            "verify": lambda: verify_packs(packs, exp / "A5"),
            "alone": lambda: verify_packs(packs, None),
            "list": lambda: list_packs([exp]),
            "show": lambda: show_pack(packs[0]),
            "export": lambda: export_pack(packs[0], exp / "hub", task_of),
            "import": lambda: import_pack(packs[1], exp / "A1"),
            "fold": lambda: fold_pack(packs[0], exp / "folded", exp / "A5"),
            "backbone": lambda: pelasr.load(exp / "A1").decode([noise(0.4)], "hi"),
        }
        name = list(others)[number % len(others)]
        calls = {"model": lambda: pelasr.load(exp / "A5").decode([noise(0.4), noise(0.3)], ["hi", "uk"])}
        calls[name] = others[name]
    if (exp / "experiments.yaml").exists():
        calls["experiments"] = lambda: load_experiments(exp / "experiments.yaml")
    return {name: refusal(call) for name, call in calls.items()}


def seal(path, description):
    """What another hand can write: any YAML, with its hash."""
    body = description if isinstance(description, bytes) else yaml.safe_dump(description, sort_keys=False).encode()
    path.write_bytes(body + b"sha256: " + hashlib.sha256(body).hexdigest().encode() + b"\n")


def described(path):
    return {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "sha256"}


def places(value, path=()):
    """All places in a description."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def change(draws, description):
    """Another value, no value, or one more, anywhere in a description."""
    *above, key = draws.choice(list(places(description)))
    host = description
    for each in above:
        host = host[each]
    match draws.randrange(10):
        case 0:
            del host[key]
        case 1 if isinstance(host, dict):
            host[draws.choice(["surplus", "\x1b", 5, LONG, "sites", "host", "width", key])] = copy.deepcopy(
                draws.choice(VALUES)
            )
        case _:
            host[key] = copy.deepcopy(draws.choice(VALUES))


def reseal(exp):
    """Right hashes for all files, whatever is in them."""
    for path in (exp / "A5/packs").glob("*/pack.yaml"):
        seal(path, described(path) | {"safetensors_sha256": sha256_file(path.with_name("pack.safetensors"))})
    for name in ("A1", "2"):
        folder = exp / name
        if folder.is_dir():
            tokens, model = (folder / "tokens/tokens.txt").read_bytes(), folder / "tokens/spm.model"
            listed = tokens.decode("utf-8", "replace").removesuffix("\n").split("\n")
            hashes = {
                "tokens_sha256": sha256_json([listed, model.read_bytes().hex() if model.exists() else None]),
                "weights": {"backbone": sha256_file(folder / "backbone.safetensors")},
            }
            seal(folder / "backbone.yaml", described(folder / "backbone.yaml") | hashes)


def backbones(draws, exp, made):
    path = draws.choice(list(exp.glob("*/backbone.yaml")))
    description = described(path)
    for _ in range(draws.choice([1, 1, 1, 3])):
        options = description.get("options")
        change(draws, draws.choice([description, options]) if isinstance(options, dict) and options else description)
    seal(path, description)


def packs(draws, exp, made):
    path = exp / f"A5/packs/{draws.choice(['hi', 'uk'])}/pack.yaml"
    description = described(path)
    for _ in range(draws.choice([1, 1, 2])):
        change(draws, description)
    seal(path, description)


def raw_yaml(draws, exp, made):
    paths = ["A1/backbone.yaml", "A5/packs/hi/pack.yaml", "A5/model.yaml", "experiments.yaml"]
    path = exp / draws.choice(paths)
    old = b"" if not path.exists() else path.read_bytes().rpartition(b"sha256: ")[0] or path.read_bytes()
    laughs = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 1}]\n" for n in range(20)).encode()
    body = draws.choice(
        [
            old + laughs,
            old + b"x: " + b"[" * draws.choice([11, 50_000]) + b"\n",
            old + b"x: !!python/object/apply:os.system ['touch RAN']\n",
            old + b"x: {" + b"a: 1, " * 100 + b"}\n",
            old * 2,
            old + b"x: " + b"y" * 200_000 + b"\n",
            old + b"\xff\xfe",
            old + b"x: 1" + b":59" * 3000 + b"\n",
            old.replace(b": ", b":\t"),
            old.replace(b"\n", b"\n\n# \xe2\x80\xae\n"),
            draws.randbytes(3000),
        ]
    )
    if draws.random() < 0.7 and path.name != "experiments.yaml":
        seal(path, body)
    else:
        path.write_bytes(body)


def headers(draws, exp, made):
    """Of safetensors: sizes, names, types, shapes, offsets."""
    path = exp / draws.choice(
        ["A1/backbone.safetensors", "A5/packs/hi/pack.safetensors", "A5/packs/uk/pack.safetensors"]
    )
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = draws.choice([key for key in header if key != "__metadata__"])
    match draws.randrange(8):
        case 0:
            header[name]["shape"] = draws.choice([[], [-1], [2**62], [0, 2**62], [1.5], "x", [[1]], [2**32] * 2, None])
        case 1:
            header[name]["data_offsets"] = draws.choice([[0, 2**62], [8, 0], [-4, 0], [0, 4], [], "x", [2**64, 2**64]])
        case 2:
            header[name]["dtype"] = draws.choice(["F64", "BOOL", "I64", "BF16", "F8_E4M3", "X", 5, None, "F16", "F4"])
        case 3:
            header[draws.choice(["../x", "\x1b[2J", "", LONG, "a.b.c", "__metadata__"])] = header.pop(name)
        case 4:
            header["__metadata__"] = draws.choice([{"a": "b" * 10**6}, {"a": 5}, [], {str(n): "" for n in range(9999)}])
        case 5:
            header = draws.choice([[], 5, {}, {name: []}, {name: {}}, {**header, "surplus": header[name]}])
        case 6:
            data = draws.choice([data[:-1], data + b"\0", b"", data[::-1], b"\xff" * len(data), bytes(len(data))])
    body = json.dumps(header).encode()
    if draws.random() < 0.1:
        body = b"[" * draws.choice([100, 500_000])
    size = len(body) if draws.random() < 0.8 else draws.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1, len(body) + 1])
    path.write_bytes(size.to_bytes(8, "little") + body + data)
    reseal(exp)


def tokens(draws, exp, made):
    path = draws.choice(list(exp.glob("*/tokens/tokens.txt")))
    found = path.read_text().splitlines()
    at = draws.randrange(len(found))
    match draws.randrange(6):
        case 0:
            found[at] = draws.choice(["", " ", "\x1b[2J", "<blank>", "<lang:x>", LONG, "‮", "\ufeff", "a\x85b", "\x1c"])
        case 1:
            del found[at]
        case 2:
            found[2:-1] = [f"w{n}" for n in range(draws.choice([1, 1000, 100_000]))]
        case 3:
            found = [token * draws.choice([1, 2]) for token in found]
        case 4:
            draws.shuffle(found)
        case 5:
            found[2:2] = ["<lang:de>", "▁", "⁇"]
    path.write_bytes("\n".join(found).encode("utf-8", "surrogatepass") + draws.choice([b"\n", b"", b"\r\n", b"\xff\n"]))
    if draws.random() < 0.5:
        (path.parent / "spm.model").write_bytes(
            draws.choice([b"", draws.randbytes(300), (made / "pieces/spm.model").read_bytes()[: draws.randrange(9999)]])
        )
    reseal(exp)


def pieces(draws, exp, made):
    """A model of sentencepiece, of which bytes are others."""
    for name in ("tokens.txt", "spm.model"):
        shutil.copyfile(made / "pieces" / name, exp / "2/tokens" / name)
    content = bytearray((made / "pieces/spm.model").read_bytes())
    for _ in range(draws.choice([1, 3, 30])):
        content[draws.randrange(len(content))] = draws.randrange(256)
    (exp / "2/tokens/spm.model").write_bytes(content)
    reseal(exp)
    refusal(lambda: Tokenizer.load(exp / "2/tokens").decode(Tokenizer.load(exp / "2/tokens").encode("the cat")))


def paths(draws, exp, made):
    targets = [
        "../A1",
        "../../../../../../etc",
        "/dev",
        "a\0b",
        "",
        ".",
        "../A5",
        "\x1b",
        LONG,
        "../A1/backbone.yaml",
        "~",
    ]
    content = {
        "backbone": draws.choice([*targets, 5, None, [1], {"a": 1}]),
        "weights": draws.choice(["backbone", "early", "../backbone", 5, [], None]),
    }
    if draws.random() < 0.3:
        content[draws.choice(["x", 5, "packs"])] = copy.deepcopy(draws.choice(VALUES))
    (exp / "A5/model.yaml").write_text(yaml.safe_dump(content))


def experiments(draws, exp, made):
    names = ["A1", "../x", "a/b", ".", "\x1b", 5, True, None, LONG, "A 1", "-x", "‮", "A5"]
    keys = ["description", "compare", "adapt", "adapter", "serve", "read_early", "langs", "each", "token_type", "x", 5]
    entries = {
        draws.choice(names): draws.choice(
            [{draws.choice(keys): draws.choice([*VALUES, *names[:4]]) for _ in range(3)}, None, 5]
        )
        for _ in range(3)
    }
    (exp / "experiments.yaml").write_text(yaml.safe_dump(entries))


def no_files(draws, exp, made):
    inside = [path for path in exp.rglob("*") if path.is_file() and path.suffix in (".yaml", ".safetensors", ".txt")]
    for path in draws.sample(inside, 2):
        path.unlink()
        match draws.randrange(5):
            case 0:
                os.mkfifo(path)
            case 1:
                path.mkdir()
            case 2:
                path.symlink_to(draws.choice(["/dev/zero", "/dev/random", "/proc/kmsg", "/etc/passwd", path.name]))
            case 3:
                path.touch()
                os.truncate(path, draws.choice([0, 1 << 20, 1 << 33, 1 << 42]))
            case 4:
                os.mkfifo(path.with_name("pipe"))


POISONS = {
    backbones: 60,
    packs: 40,
    raw_yaml: 20,
    headers: 30,
    tokens: 20,
    pieces: 10,
    paths: 10,
    experiments: 20,
    no_files: 20,
}


@pytest.mark.parametrize(
    ("poison", "seed"),
    [(poison, seed) for poison, count in POISONS.items() for seed in range(count)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_poisoned_model(made, tmp_path, monkeypatch, capsys, poison, seed):
    monkeypatch.chdir(tmp_path)
    draws, exp = random.Random(seed), tmp_path / "exp"
    which = "st" if poison is pieces or (poison in (backbones, tokens) and seed % 3 == 0) else "asr"
    shutil.copytree(made / which, exp)
    poison(draws, exp, made)
    use(exp, seed)
    assert not Path("RAN").exists()


def test_facts_may_be_missing(made, tmp_path):
    """Of a backbone's training, and of a pack's: pieces have the longest length then."""
    shutil.copytree(made / "asr", tmp_path / "exp")
    for path, training in (("A1/backbone.yaml", {"utterances": 3}), ("A5/packs/hi/pack.yaml", {"hours": 1.5})):
        seal(tmp_path / "exp" / path, described(tmp_path / "exp" / path) | {"training": training})
    assert pelasr.load(tmp_path / "exp/A5").decode([noise(0.4)], "hi")


def test_what_is_resealed_is_used(made, tmp_path):
    """So the hashes are not what the poisoned ones are refused for."""
    for which in ("asr", "st"):
        shutil.copytree(made / which, tmp_path / which)
        reseal(tmp_path / which)
        assert not any(use(tmp_path / which, 0).values())
