# The stages of every recipe, sourced by its run.sh with the command line's arguments. Before, run.sh sets
#   recipe, langs, exps, all_exps, config, adapter    and defines    prepare_data (stage 1: what writes data/)
# and may set init, token_type, vocab_size, beam_size, and add to `options` (lines of "name: help"), with a default for
# each; those of them that are paths are named in `paths`. Where experiments are rows of a paper's table it sets
# unlisted=exps, so that its help speaks of --rows; both options work everywhere.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
threads_given=${OMP_NUM_THREADS:-}
. "$here/path.sh"
. "$here/cmd.sh"

stage=1
stop_stage=7
token_type=${token_type:-char}
vocab_size=${vocab_size:-1000}
init=${init:-none}
beam_size=${beam_size:-}
decode_as=
lm=
lm_weight=
word_bonus=
rows=$exps
unlisted=${unlisted:-rows}
fit_langs=
adapters=
seeds=
comparison=
experiments=conf/experiments.yaml
note=conf/results.yaml
train_dir=
dev_dir=
test_dir=
tokens=auto
start=fresh
continue=false
forgetting=false
skip_bad=false
dump=true
sets="test"
data_dir=data
dump_dir=dump
exp_dir=exp
results=
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  ngpu=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
else
  ngpu=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
fi
cores=$(env -u OMP_NUM_THREADS nproc)
nj=$cores
jobs=
seed=
dry_run=false
recipe_langs=$langs
recipe_options=${options:-}
paths="train_dir dev_dir test_dir data_dir dump_dir exp_dir results config adapter experiments comparison model lm ${paths:-}"
options="stage: first stage: 1 data, 2 tokens, 3 stats, 4 backbone, 5 adapt, 6 decode, 7 score and table
stop_stage: last stage
exps: experiments of the file, or all
rows: rows of the table, which are experiments of the file, or all
experiments: YAML file that says what they are
adapters: methods of the comparison, or all, which are then fitted and compared; without exps, nothing else is
comparison: YAML file of the methods; default: comparison/NAME.yaml beside the configuration NAME.yaml
seeds: training seeds, as \"0 1 2\": all that is trained and fitted is so with each of them; data are the same
langs: the recipe's languages, which its backbones are trained on
fit_langs: languages to fit and decode from stage 5 on, of the recipe's or new ones; default: the recipe's
train_dir: of one new language in fit_langs: its data directory, if it is not data_dir/train_<language>
dev_dir: the same for dev
test_dir: the same for test
tokens: of a new language: own, keep (the shared ones), or auto: own if many of its characters are unknown
start: in stage 5 adapters begin fresh, as those of another LANGUAGE's pack, of the nearest pack, or meta-trained (meta)
continue: true: stage 5 trains further what is fitted already, or was imported, by the options of this call
config: YAML file of the backbone
adapter: YAML file of the adapters, or a name in conf/adapter; experiments that name one have their own
init: experiment whose encoder the backbones start from, or none
token_type: char (graphemes) or unigram (sentencepiece)
vocab_size: tokens, for unigram
skip_bad: true: drop bad utterances and list them
dump: false: features are computed while training, none are written
sets: test sets
beam_size: of the search; default: the backbone's
lm: n-gram language model of words for the search, ARPA or KenLM's binary; {lang} in it is the language; default: none
lm_weight: of its log probabilities; default: 0.5
word_bonus: of every word, with a language model; default: 1.5
decode_as: language of the backbone's as which new ones are decoded that have no pack; default: the mean of all vectors
data_dir: data directories
dump_dir: features
exp_dir: models and results
results: page to write, its chart beside it; default: RESULTS.md in exp_dir
ngpu: GPUs
nj: processes of the data stages
jobs: experiments side by side, each with its share of the cores or GPUs; default: a core each, or all GPUs for one
seed: of everything random; default: the one in the YAML files, or 0
forgetting: true: with new languages in fit_langs, measure in stage 7 what they changed for the others
dry_run: true: print the commands only
$recipe_options"
. "$here/parse_options.sh"
for name in stage stop_stage vocab_size ngpu nj; do
  case "${!name}" in
    "" | *[!0-9]*) echo "$0: --$name: '${!name}' is no whole number" >&2; exit 2 ;;
  esac
done
# A configuration may have experiments of its own, beside it, whatever the recipe's are about.
own_experiments=$(dirname "$config")/experiments/$(basename "$config")
if [ -f "$own_experiments" ] && [[ "$given" != *" experiments "* ]]; then
  experiments=$own_experiments
  note=${own_experiments%.yaml}_note.yaml
  all_exps=$(awk '/^[^ #]/ { sub(":.*", ""); name = $0 } /^ +adapt:/ { print name }' "$experiments" | tr '\n' ' ')
  case "$given" in *" exps "* | *" rows "*) ;; *) exps=$all_exps rows=$all_exps ;; esac
  case "$given" in *" exp_dir "*) ;; *) exp_dir=exp/$(basename "$config" .yaml) ;; esac
fi
if [ -z "$comparison" ]; then
  comparison=$(dirname "$config")/comparison/$(basename "$config")
  [ -f "$comparison" ] || comparison=
fi
if [ -n "$seed" ] && [ -n "$seeds" ]; then
  echo "$0: --seed $seed --seeds '$seeds': one of them; the data are made with --seed" >&2
  exit 2
fi
if grep -q '^backbone: *ctc' "$config" 2>/dev/null; then extras=${extras:+$extras,}hf; fi
results=${results:-$exp_dir/RESULTS.md}

log() { echo "[$(date '+%H:%M:%S')] $*" >&2; }
run() {
  if [ "$dry_run" = true ]; then echo "${*@Q}"; else "$@"; fi
}
made_with() { # the recipe's own options, as they were when the data were made; of paths the last name
  local name value
  while IFS=: read -r name _; do
    [ -n "$name" ] && [ -n "${!name}" ] || continue
    value=${!name}
    case " $paths " in *" $name "*) value=$(basename "$value") ;; esac
    echo "--$name ${value@Q}"
  done <<<"$recipe_options"
}
. "$here/side_by_side.sh"
which_of() { # which_of backbones|adapted: those that train backbones for the experiments wanted, or that have adapters
  if [ "$dry_run" = true ] && [ -z "$adapters$seeds" ]; then
    echo "$exps"
  else
    pelasr experiments "${what[@]}" --exps "$exps" --which "$1"
  fi
}
starts() { # starts N "what": is this stage wanted?
  [ "$stage" -le "$1" ] && [ "$stop_stage" -ge "$1" ] && log "stage $1: $2"
}

case "$given" in
  *" rows "*) exps=$rows ;;
  *" exps "*) ;;
  *) [ -z "$adapters" ] || exps= ;;
esac
[ "$exps" = all ] && exps=$all_exps
case "$adapter" in */* | *.yaml) ;; *) adapter=$here/../conf/adapter/$adapter.yaml ;; esac
if [ ! -f "$adapter" ]; then
  echo "$0: --adapter: no file $adapter; names: $(basename -s .yaml "$here"/../conf/adapter/*.yaml | tr '\n' ' ')" >&2
  exit 2
fi
# The experiment that the others' encoders come from is trained first, and has no row in the table.
first=
[ "$init" = none ] || first=$init
# Once backbones are trained their languages are settled. --langs alone, from stage 5 on, means --fit_langs, as it did
# before there was that.
if [ "$stage" -ge 5 ]; then
  case "$given" in *" fit_langs "*) ;; *" langs "*) fit_langs=$langs langs=$recipe_langs ;; esac
  if [ -f "$exp_dir/langs" ]; then
    trained=$(cat "$exp_dir/langs")
    if [[ "$given" == *" langs "* && "$given" == *" fit_langs "* && "$langs" != "$trained" ]]; then
      echo "$0: --langs: '$langs', but $exp_dir is about '$trained'; leave --langs out" >&2
      exit 2
    fi
    langs=$trained
  fi
fi
fit_langs=${fit_langs:-$langs}
new=
for lang in $fit_langs; do
  case " $langs " in *" $lang "*) ;; *) new+="${new:+ }$lang" ;; esac
done

if [ -n "$train_dir$dev_dir$test_dir" ] && { [ "$stage" -gt 5 ] || [ -z "$new" ] || [ "$new" != "${new% *}" ]; }; then
  echo "$0: --train_dir, --dev_dir and --test_dir go with stage 5 and one new language in --fit_langs" >&2
  exit 2
fi
if [ "$forgetting" = true ] && [ -z "$new" ]; then
  echo "$0: --forgetting true goes with new languages in --fit_langs" >&2
  exit 2
fi

backbone_overrides=() adapter_overrides=()
for ((n = 0; n < ${#overrides[@]}; n += 2)); do
  key=${overrides[n]#--}
  case "$key" in
    adapter_conf) adapter_overrides+=("--$key" "${overrides[n + 1]}") ;;
    adapt_*) adapter_overrides+=("--${key#adapt_}" "${overrides[n + 1]}") ;;
    *) backbone_overrides+=("--$key" "${overrides[n + 1]}") ;;
  esac
done

read -r first_seed _ <<<"${seed:-$seeds}" # other seeds' experiments have it in their names
case " ${adapter_overrides[*]} " in
  *" --seed "*) ;;
  *) adapter_overrides+=(${first_seed:+--seed "$first_seed"}) ;;
esac

run "$here/../tools/install.sh" ${extras:+"$extras"}
what=(--experiments "$experiments")
[ -z "$adapters" ] || what+=(${comparison:+--comparison "$comparison"})
firsts=$first
if [ -n "$adapters$seeds" ]; then
  # From here on `exps` names methods, and other seeds' experiments, too.
  trained_in=
  [ "$stage" -lt 5 ] || [ "$dry_run" = true ] || trained_in=$exp_dir
  exps=$(pelasr experiments "${what[@]}" --exps "$exps" --adapters "$adapters" --seeds "$seeds" --which all \
    ${trained_in:+--trained_in "$trained_in"})
  firsts=$(pelasr experiments "${what[@]}" --exps "$first" --seeds "$seeds" --which all)
fi
if [ "$dry_run" != true ] && [ ${#overrides[@]} -gt 0 ]; then
  # A misspelt option should not wait for the stage that reads it.
  pelasr config --config "$config" --adapter "$adapter" "${what[@]}" --exps "$exps" \
    --others "$(sed -n 's/:.*//p' <<<"$options" | tr '\n' ' ')" "${overrides[@]}" >/dev/null ||
    { echo "$0: the pipeline's own options are listed by $0 --help" >&2; exit 2; }
fi

place=(--data_dir "$data_dir" --dump_dir "$dump_dir" --exp_dir "$exp_dir" --langs "$langs")

if starts 1 "data"; then
  prepare_data
  [ "$dry_run" = true ] || { mkdir -p "$exp_dir" && made_with >"$exp_dir/made_with"; }
  run pelasr data "${place[@]}" "${what[@]}" --exps "$firsts $exps" --config "$config" --sets "train dev $sets" \
    --skip_bad "$skip_bad" --nj "$nj" "${backbone_overrides[@]}"
  [ "$dry_run" = true ] || echo "$langs" >"$exp_dir/langs"
fi
if starts 2 "tokens"; then
  run pelasr tokens "${place[@]}" "${what[@]}" --exps "$firsts $exps" --sets "dev $sets" --token_type "$token_type" \
    --vocab_size "$vocab_size"
fi
if starts 3 "features and statistics"; then
  run pelasr stats "${place[@]}" --config "$config" --sets "train dev $sets" --dump "$dump" --nj "$nj" \
    "${backbone_overrides[@]}"
fi
train_one() { # train_one EXPERIMENT: the backbone that it owns
  local from=$first
  case " $firsts " in *" $1 "*) from= ;; esac
  run $train_cmd pelasr train "${place[@]}" "${what[@]}" --exp "$1" --config "$config" --ngpu "$ngpu" \
    ${from:+--init "$from"} ${first_seed:+--seed "$first_seed"} "${backbone_overrides[@]}"
}
adapt_one() {
  run $train_cmd pelasr adapt "${place[@]}" "${what[@]}" --exp "$1" --adapter "$adapter" \
    --fit_langs "$fit_langs" --ngpu "$ngpu" --tokens "$tokens" --start "$start" \
    --continue "$continue" "${adapter_overrides[@]}"
}
with_lm=(${lm:+--lm "$lm"} ${lm_weight:+--lm_weight "$lm_weight"} ${word_bonus:+--word_bonus "$word_bonus"})
decode_one() {
  run $decode_cmd pelasr decode "${place[@]}" "${what[@]}" --exp "$1" --sets "$sets" --fit_langs "$fit_langs" \
    --ngpu "$((ngpu > 0))" ${beam_size:+--beam_size "$beam_size"} ${decode_as:+--decode_as "$decode_as"} "${with_lm[@]}"
}
if starts 4 "backbone"; then
  side_by_side train_one $firsts
  side_by_side train_one $(which_of backbones)
fi
if starts 5 "adapters"; then
  if [ -n "$new" ]; then
    run pelasr add "${place[@]}" --config "$config" --fit_langs "$new" --sets "train dev $sets" \
      --skip_bad "$skip_bad" --dump "$dump" --nj "$nj" \
      ${train_dir:+--train_dir "$train_dir"} ${dev_dir:+--dev_dir "$dev_dir"} ${test_dir:+--test_dir "$test_dir"} \
      "${backbone_overrides[@]}"
  fi
  rounds=$(which_of adapted) # a line for what may run side by side
  mapfile -t rounds <<<"$rounds"
  for round in "${rounds[@]}"; do side_by_side adapt_one $round; done
fi
if starts 6 "decoding"; then
  side_by_side decode_one $exps
fi
if starts 7 "scores and table"; then
  if [ -n "$new" ] && [ "$forgetting" = true ]; then
    run pelasr forgetting "${place[@]}" "${what[@]}" --exps "$exps" --sets "$sets" --fit_langs "$new" \
      --recipe "$recipe" ${beam_size:+--beam_size "$beam_size"}
  fi
  searched=(${beam_size:+--beam_size "$beam_size"} ${decode_as:+--decode_as "$decode_as"} "${with_lm[@]}")
  run pelasr score "${place[@]}" "${what[@]}" --exps "$exps" --sets "$sets" --recipe "$recipe" "${searched[@]}"
  for name in $sets; do # test's page is RESULTS.md, another set's RESULTS_<set>.md
    page=$results
    [ "$name" = test ] || page=${results%.md}_$name.md
    if [ -n "$adapters" ]; then
      run pelasr methods "${place[@]}" "${what[@]}" --exps "$exps" --set "$name" --recipe "$recipe" "${searched[@]}" \
        --page "${comparison%.yaml}_note.yaml" --paper "$here/../conf/comparison/papers.yaml" \
        --output "${page%.md}_methods.md"
      case "$given" in *" exps "* | *" rows "*) ;; *) continue ;; esac
    fi
    run pelasr table "${place[@]}" --experiments "$experiments" ${comparison:+--comparison "$comparison"} \
      --set "$name" --recipe "$recipe" --page "$note" --output "$page"
  done
fi
