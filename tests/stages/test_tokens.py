"""Which experiments have which token lists."""

import pytest
from places import experiment, translated

from pelasr.data.tokenizer import Tokenizer
from pelasr.errors import PelasrError
from pelasr.stages.tokens import make_tokens


def test_token_lists_of_all_languages_of_each_and_of_the_source(tmp_path, capsys):
    where = translated(tmp_path)
    chosen = [
        experiment("asr", languages=["en"], tokens={"token_type": "char"}),
        experiment("1", each=True),
        experiment("2"),
        experiment("3"),
    ]
    assert make_tokens(where, chosen, [], "char", 0)
    tokens = {path.name: Tokenizer.load(path).tokens for path in (tmp_path / "exp").glob("tokens*")}
    assert set(tokens) == {"tokens", "tokens_en", "tokens_en-de", "tokens_en-fr"}
    assert tokens["tokens"][-3:] == ["<lang:de>", "<lang:fr>", "<sos/eos>"]
    assert tokens["tokens_en-fr"][-2:] == ["<lang:fr>", "<sos/eos>"]
    assert "T" in tokens["tokens_en-de"] and "T" not in tokens["tokens_en-fr"]
    assert not any(token.startswith("<lang") for token in tokens["tokens_en"]) and "3" not in tokens["tokens_en"]
    assert capsys.readouterr().out.count("tokens in") == 4  # rows 2 and 3 share theirs
    assert not make_tokens(where, chosen, [], "char", 0)


def test_one_folder_of_tokens_has_one_kind(tmp_path):
    other = experiment("3", tokens={"token_type": "unigram", "vocab_size": 30})
    with pytest.raises(PelasrError, match="3: its tokens in .*tokens are another experiment's too"):
        make_tokens(translated(tmp_path), [experiment("2"), other], [], "char", 0)
