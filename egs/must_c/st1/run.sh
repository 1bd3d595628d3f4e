#!/usr/bin/env bash
# MuST-C v1, English talks into eight languages: Le et al. 2021 (rows 1-8) at the paper's sizes: run.sh --must_c DIR,
# where DIR holds en-de, en-es, ... as they are published. --langs "en-de en-fr" takes some of the pairs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=must_c/st1
langs="en-de en-es en-fr en-it en-nl en-pt en-ro en-ru"
all_exps="1 2 3 4 5 6 7 8"
exps="2 4 8"
unlisted=exps
config=../../../conf/st_le2021.yaml
adapter=../../../conf/adapter/houlsby_st.yaml
init=asr
token_type=unigram
beam_size=5
vocab_size=10000
must_c=
paths=must_c
options="must_c: folder of the corpus, with en-de/data/train/wav and so on; without it: how to get them"

prepare_data() {
  run python local/data.py ${must_c:+--must_c "$must_c"} --data "$data_dir" --pairs "$langs" --skip_bad "$skip_bad"
}

. ../../../local/pipeline.sh
