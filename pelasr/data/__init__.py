"""Data directories, audio, features and tokens; here what the `local/data.py` of a recipe imports."""

from pelasr.data.kaldi import Utterance, add_skipped, write_data_dir
from pelasr.data.language import split_pair
from pelasr.data.tokenizer import normalise

__all__ = ["Utterance", "add_skipped", "normalise", "split_pair", "write_data_dir"]
