"""How each command of the documents is run by the tests."""

import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import yaml
from doc_clone import INDIC
from documents import ROOT
from small_runs import SMALL

from pelasr.cli.main import build_parser, main
from pelasr.terminal import with_underscores


def pelasr(text: str, clone: Path, monkeypatch) -> None:
    """`pelasr ...`, without a shell: words and `*` as a shell has them. What is piped into it is a recording."""
    _, piped, text = text.rpartition(" | ")
    words = [
        str(word) for part in shlex.split(text)[1:] for word in (sorted(Path().glob(part)) if "*" in part else [part])
    ]
    if piped:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("a.wav").read_bytes())))
    assert shlex.split(text)[0] == "pelasr"
    main(words)


def recipe(text: str, clone: Path, monkeypatch) -> None:
    """What a recipe would do, by a dry run; that the command line takes it, and the configuration all of its options.

    `tests/test_docs_run.py` does it. N stands for a number; a bare `run.sh` is any recipe's.
    """
    text = re.sub(r"\bN\b", "2", re.sub(r"(^|; )run\.sh", rf"\1{INDIC}/run.sh", text))
    done = subprocess.run(["bash", "-c", f"{text} --dry_run true"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    told = [words[words.index("pelasr") :] for words in lines if "pelasr" in words]
    assert {words[1] for words in told} >= {"decode", "score", "methods" if "--adapters" in text else "table"}
    monkeypatch.chdir(clone / re.search(r"egs/\w+/\w+", text)[0])
    for words in told:
        known, rest = build_parser().parse_known_args(with_underscores(words[1:]))
        assert known.overridable or not rest
        if known.verb == "train":
            check = ["--config", known.config, *rest]
        elif known.verb == "adapt":
            rest = [re.sub("^--(?!adapter_conf)", "--adapt_", word) for word in rest]
            check = ["--config", "../../../conf/rnnt_mini.yaml", "--adapter", known.adapter, *rest]
        else:
            continue
        what = ["--experiments", str(known.experiments), "--exps", known.exp]
        what += ["--comparison", str(known.comparison)] if known.comparison else []
        main(["config", *what, *map(str, check)])


def data_alone(text: str, clone: Path, monkeypatch) -> None:
    """The first stage of a recipe, by a dry run."""
    done = subprocess.run(["bash", "-c", f"{text} --dry_run true"], capture_output=True, text=True)
    told = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [words[0] for words in told[1:]] == ["python", "pelasr"], done.stderr


def helped(text: str, clone: Path, monkeypatch) -> None:
    text = re.sub("^run.sh", f"{INDIC}/run.sh", text)
    done = subprocess.run(shlex.split(text), capture_output=True, text=True)
    assert done.returncode == 0 and "--stage" in done.stdout


def torchrun(text: str, clone: Path, monkeypatch, prepared: Path) -> None:
    """Two processes of this machine's CPU, a tiny model, and a language that there are data of."""
    folder = clone / "torchrun" / INDIC
    shutil.copytree(ROOT / INDIC / "conf", folder / "conf")
    for name in ("data", "dump"):
        (folder / name).symlink_to(prepared / name)
    shutil.copytree(prepared / "exp", folder / "exp")
    mini = yaml.safe_load((ROOT / "conf/rnnt_mini.yaml").read_text(encoding="utf-8"))
    (clone / "torchrun/conf").mkdir()
    (clone / "torchrun/conf/rnnt_mini.yaml").write_text(yaml.safe_dump({**mini, **SMALL, "max_epoch": 1}))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    changed = {"per_node 8": "per_node 2", "--nnodes 2": "--nnodes 1", "node0": "127.0.0.1", "29500": str(port)}
    changed |= {"hi mr bn te gu ta ml kn ur": "hi", "--ngpu 8": "--ngpu 0"}
    for written, here in changed.items():
        assert written in text
        text = text.replace(written, here)
    path = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "exp/A1/backbone.safetensors").exists()


def bench(text: str, clone: Path, monkeypatch) -> None:
    """Its options are the script's; `tests/test_docs_run.py` runs it."""
    script, *options = shlex.split(text)[2:]
    assert (ROOT / script).is_file() and Path(shlex.split(text)[1]).exists()
    assert all(f'"{word}"' in (ROOT / script).read_text() for word in options if word.startswith("--"))


def activate(text: str, clone: Path, monkeypatch) -> None:
    done = subprocess.run(["bash", "-c", f"{text} && command -v pelasr torchrun"], capture_output=True, text=True)
    assert [Path(name).parent.name for name in done.stdout.split()] == ["bin", "bin"], done.stderr


def parsed(text: str, clone: Path, monkeypatch) -> None:
    """Not run: `git clone` and the installation need the network, and the tests would run themselves."""
    words = shlex.split(text.replace("TORCH=cuda ", ""))
    if words[0] == "git":
        assert re.fullmatch(r"git clone https://github\.com/[\w-]+/[\w-]+", text)
    else:
        assert (ROOT / words[0]).is_file() and subprocess.run(["bash", "-n", ROOT / words[0]]).returncode == 0


RUNS = {
    "egs/mini_indic/asr1/run.sh": recipe,
    "tests/run.sh": parsed,
    ". .venv/bin/activate": activate,
    "egs/mini_indic/asr1/run.sh --help": helped,
    "egs/mini_indic/asr1/run.sh --stage 5 --fit_langs pa": recipe,
    "pelasr packs list egs/mini_indic/asr1/exp": pelasr,
    "pelasr packs export egs/mini_indic/asr1/exp/A5/packs/ur hub/ur": pelasr,
    "pelasr params --config conf/rnnt_kannan2019.yaml --adapter conf/adapter/houlsby.yaml": pelasr,
    "egs/mini_europe/st1/run.sh": recipe,
    "egs/mini_europe/st1/run.sh --rows all": recipe,
    "pelasr params --config conf/st_le2021.yaml --vocab_size 10000 --num_languages 8"
    " --adapter conf/adapter/houlsby_st.yaml": pelasr,
    "egs/mini_indic/asr1/run.sh --adapters all --stage 5": recipe,
    'egs/mini_indic/asr1/run.sh --adapters "houlsby lora" --seeds "0 1 2" --jobs 2': recipe,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_mini.yaml --adapters all": recipe,
    'egs/mini_europe/st1/run.sh --adapters "houlsby lora bitfit"': recipe,
    "egs/mini_europe/st1/run.sh --experiments mine.yaml --rows 9 --stage 5": recipe,
    "egs/mini_indic/asr1/run.sh --exps A5 --stage 5 --fit_langs ur --adapt_max_epoch 40": recipe,
    "egs/mini_indic/asr1/run.sh --exps A5 --stage 5 --fit_langs pa"
    " --train_dir /my/train --dev_dir /my/dev --test_dir /my/test": recipe,
    "egs/mini_indic/asr1/run.sh --stage 5 --fit_langs pa --continue true": recipe,
    'egs/mini_indic/asr1/run.sh --stop_stage 1 --later "pa ka si"': data_alone,
    "egs/mini_indic/asr1/run.sh --stage 5 --fit_langs ka": recipe,
    "egs/mini_indic/asr1/run.sh --stage 5 --fit_langs si --start nearest": recipe,
    'egs/mini_indic/asr1/run.sh --stage 5 --exps "A1 A5 F" --fit_langs pa --forgetting true': recipe,
    'pelasr table --forgetting --langs "hi mr bn te gu ta ml kn ur" --recipe mini_indic/asr1': pelasr,
    "pelasr transcribe --model egs/mini_indic/asr1/exp/A5 --lang hi a.wav b.flac recordings/": pelasr,
    "pelasr translate --model egs/mini_europe/st1/exp/4 --lang en-de talk.mp3": pelasr,
    "arecord -d 5 -f S16_LE -r 16000 | pelasr transcribe --model egs/mini_indic/asr1/exp/A5 --lang ta -": pelasr,
    "pelasr packs list exp": pelasr,
    "pelasr packs show exp/A5/packs/ur": pelasr,
    "pelasr packs verify --model exp/A5 exp/A5/packs/*": pelasr,
    "pelasr packs merge ur1 ur2 --weights 0.7 0.3 --language ur --output ur --model exp/A5": pelasr,
    "pelasr packs merge --fold exp/L/packs/ur --output exp/A1_ur --model exp/L": pelasr,
    "pelasr packs export exp/A5/packs/ur hub/ur": pelasr,
    "pelasr packs import hub/ur --model exp/A5": pelasr,
    'pelasr import mms mms-1b-all --langs "hin" exp/mms': pelasr,
    "pelasr transcribe --model exp/mms --lang hi a.wav": pelasr,
    'pelasr import mms mms-1b-all --langs "te" exp/mms': pelasr,
    "pelasr packs list exp/mms": pelasr,
    "pelasr export mms exp/mms my-mms": pelasr,
    'pelasr import mms mms-1b-all --langs "hin tel" egs/mini_indic/asr1/exp/mms_1b/mms': pelasr,
    'egs/mini_indic/asr1/run.sh --config conf/mms_1b.yaml --langs "hi te" --continue true': recipe,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_ctc.yaml --model xls-r-300m": recipe,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_ctc.yaml --model xls-r-300m --stage 5 --fit_langs pa": recipe,
    "pelasr params --config conf/hubert_base.yaml --adapter conf/adapter/ssl_houlsby.yaml"
    " --num_languages 4 --vocab_size 64": pelasr,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_mini.yaml": recipe,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_mini.yaml --stage 5 --fit_langs pa": recipe,
    "egs/mini_indic/asr1/run.sh --config conf/ssl_mini.yaml --stage 6 --beam_size 8 --lm lm/{lang}.arpa": recipe,
    "git clone https://github.com/Jakobovski/free-spoken-digit-dataset": parsed,
    "egs/fsdd/asr1/run.sh --fsdd free-spoken-digit-dataset/recordings": recipe,
    "git clone https://github.com/besacier/mboshi-french-parallel-corpus": parsed,
    "egs/mboshi/asr1/run.sh --mboshi mboshi-french-parallel-corpus/full_corpus_newsplit": recipe,
    "egs/mboshi/st1/run.sh --mboshi mboshi-french-parallel-corpus/full_corpus_newsplit": recipe,
    "egs/must_c/st1/run.sh --must_c DIR": recipe,
    'train_cmd="srun --nodes=2 --ntasks-per-node=8 --gres=gpu:8 --cpus-per-task=8"'
    ' decode_cmd="srun --gres=gpu:1 --cpus-per-task=8" egs/mini_indic/asr1/run.sh --ngpu 8': recipe,
    "torchrun --nproc_per_node 8 --nnodes 2 --node_rank 0 --master_addr node0 --master_port 29500 -m pelasr train"
    ' --langs "hi mr bn te gu ta ml kn ur" --exp A1 --config ../../../conf/rnnt_mini.yaml --ngpu 8': torchrun,
    "OMP_NUM_THREADS=2 .venv/bin/python bench/transducer_loss.py --repeats 4": bench,
    "OMP_NUM_THREADS=2 .venv/bin/python bench/st_decoding.py": bench,
    "OMP_NUM_THREADS=1 .venv/bin/python bench/rnnt_decoding.py": bench,
    "OMP_NUM_THREADS=1 .venv/bin/python bench/routing.py --repeats 3": bench,
    "OMP_NUM_THREADS=2 .venv/bin/python bench/fit_cost.py --steps 8": bench,
    "OMP_NUM_THREADS=1 .venv/bin/python bench/pretrained.py": bench,
    "tests/run.sh tests/test_config.py -k yaml": parsed,
    "tests/run.sh -m slow": parsed,
    "run.sh --help": helped,
    "run.sh --ngpu N": recipe,
    "TORCH=cuda tools/install.sh corpora": parsed,
    "tools/install.sh corpora": parsed,
    "tools/install.sh hf": parsed,
    "tools/install.sh lm": parsed,
    "tools/install.sh translit": parsed,
    "p=$(mktemp -d); egs/mini_indic/asr1/run.sh --size test --max_epoch 2 --adapt_max_epoch 2 --data_dir $p/data"
    " --dump_dir $p/dump --exp_dir $p/exp": recipe,
}
