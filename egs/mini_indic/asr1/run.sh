#!/usr/bin/env bash
# Nine Indic languages in small, after Kannan et al. 2019: one RNN-T, language vector, sampling, adapters (A0-A5).
# The speech is synthetic and made here. With no options: from nothing to the table; --help lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

recipe=mini_indic/asr1
langs="hi mr bn te gu ta ml kn ur"
all_exps="A0 A1 A2 A3 A4 A5"
exps="A0 A1 A5"
config=../../../conf/rnnt_mini.yaml
adapter=../../../conf/adapter/houlsby_mini.yaml
extras=corpora,translit
later=pa
size=$(nvidia-smi -L >/dev/null 2>&1 && echo full || echo tiny)
options="size: of the corpus: test (seconds), tiny (0.6 h of train), full (3 h)
later: languages to add later, whose scripts the backbone never sees: pa, si (Sinhala), ka (Georgian)"

prepare_data() {
  run python local/data.py --size "$size" --seed "${seed:-0}" --nj "$nj" --data "$data_dir" --langs "$langs $later"
}

. ../../../local/pipeline.sh
