#!/usr/bin/env bash
# English digits by six speakers, real voices: run.sh --fsdd DIR, where DIR is the `recordings` folder of a clone of
# the Free Spoken Digit Dataset (Jakobovski/free-spoken-digit-dataset).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=fsdd/asr1
langs="en"
all_exps="rnnt"
exps="rnnt"
config=conf/rnnt_fsdd.yaml
adapter=../../../conf/adapter/houlsby_mini.yaml
fsdd=
paths=fsdd
options="fsdd: folder of the recordings, {digit}_{speaker}_{take}.wav; without it: how to get them"

prepare_data() {
  run python local/data.py ${fsdd:+--fsdd "$fsdd"} --data "$data_dir"
}

. ../../../local/pipeline.sh
