#!/usr/bin/env bash
# Mboshi (Bantu C25) speech into French, real voices: run.sh --mboshi DIR, where DIR is the folder `full_corpus_newsplit`
# of a clone of besacier/mboshi-french-parallel-corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=mboshi/st1
langs="mb-fr"
all_exps="st"
exps="st"
unlisted=exps
config=conf/st_mboshi.yaml
adapter=../../../conf/adapter/houlsby_st_mini.yaml
init=asr
token_type=unigram
beam_size=5
vocab_size=300
mboshi=
paths=mboshi
options="mboshi: folder with train and dev of the corpus; without it: how to get them"

prepare_data() {
  run python local/data.py ${mboshi:+--mboshi "$mboshi"} --data "$data_dir" --skip_bad "$skip_bad"
}

. ../../../local/pipeline.sh
