#!/usr/bin/env bash
# English speech into eight languages in small, after Le et al. 2021: one Transformer, adapters, fine-tuning (rows 1-8).
# The speech is synthetic and made here. With no options: from nothing to the table; --help lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=mini_europe/st1
langs="en-de en-es en-fr en-it en-nl en-pt en-ro en-ru"
all_exps="1 2 3 4 5 6 7 8"
exps="2 4 8"
unlisted=exps
config=../../../conf/st_mini.yaml
adapter=../../../conf/adapter/houlsby_st_mini.yaml
init=asr
token_type=unigram
beam_size=5
vocab_size=400
extras=corpora
size=$(nvidia-smi -L >/dev/null 2>&1 && echo full || echo tiny)
options="size: of the corpus: test (seconds), tiny (0.5 h of train), full (1.9 h, open sentences)"

prepare_data() {
  run python local/data.py --size "$size" --seed "${seed:-0}" --nj "$nj" --data "$data_dir"
}

. ../../../local/pipeline.sh
