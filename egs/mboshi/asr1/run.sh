#!/usr/bin/env bash
# Mboshi (Bantu C25) recognised, real voices: run.sh --mboshi DIR, where DIR is the folder `full_corpus_newsplit`
# of a clone of besacier/mboshi-french-parallel-corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=mboshi/asr1
langs="mb"
all_exps="rnnt"
exps="rnnt"
config=conf/rnnt_mboshi.yaml
adapter=../../../conf/adapter/houlsby_mini.yaml
mboshi=
paths=mboshi
speeds="0.9 1.1"
options="mboshi: folder with train and dev of the corpus; without it: how to get them
speeds: of copies of the training speech, beside the speech itself"

prepare_data() {
  run python local/data.py ${mboshi:+--mboshi "$mboshi"} --data "$data_dir" --skip_bad "$skip_bad" --speeds "$speeds"
}

. ../../../local/pipeline.sh
