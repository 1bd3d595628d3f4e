import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'__version__ = "(.+)"', Path(__file__).with_name("pelasr").joinpath("version.py").read_text())[1]

setup(
    name="pelasr",
    version=VERSION,
    description="Multilingual speech recognition and translation with adapters",
    license="Apache-2.0",
    # With this an editable install is a path entry. Otherwise it is a finder that comes too late: seen from the clone's
    # parent folder the clone itself is `pelasr`, an empty namespace.
    package_dir={"": "."},
    packages=find_packages(include=["pelasr", "pelasr.*"]),
    package_data={"pelasr": ["py.typed"]},
    python_requires=">=3.11",
    # espnet is not named here: its own requirements would replace torch and setuptools; tools/install.sh installs it.
    install_requires=[
        "torch>=2.8",
        "lightning>=2.5",
        "numpy",
        "scipy",
        "pyyaml",
        "kaldiio",
        "soundfile",
        "librosa",
        "soxr",
        "sentencepiece",
        "sacrebleu",
        "jiwer>=4",
        "langcodes",
        "safetensors",
        "tabulate",
        "rich",
        "matplotlib",
        "tensorboardX",
        # imported by the parts of espnet that are used
        "typeguard",
        "humanfriendly",
        "torch_complex",
        "editdistance",
    ],
    extras_require={
        # espeakng-loader bundles espeak-ng, which is GPL-3: only the built-in corpora use it.
        "corpora": ["babel", "espeakng-loader==0.2.4"],
        # uroman writes letters of any script in Latin ones: where the tokens of a new language start from.
        "translit": ["uroman"],
        # transformers has the layers of pretrained encoders (wav2vec 2.0, HuBERT, WavLM, Wav2Vec2-BERT).
        "hf": ["transformers"],
        # kenlm is built when it is installed, which takes a C++ compiler and cmake. pyctcdecode wants a numpy below 2.
        "lm": ["kenlm"],
        # peft is what LoRA is compared with, in tests and bench; basedpyright checks types.
        "test": ["basedpyright", "peft", "pytest", "pytest-xdist", "ruff", "transformers", "uroman"],
    },
    entry_points={"console_scripts": ["pelasr = pelasr.cli.main:main"]},
)
