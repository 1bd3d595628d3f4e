# Sourced by the pipeline: experiments that do not depend on each other run at the same time, each with its share of the
# cores or GPUs. Two trainings on a thread each take less time together than one after the other on two.

side_by_side() { # side_by_side FUNCTION EXPERIMENT...: calls it for each, `jobs` at a time; fails if any does
  local function=$1 slots slot experiment ended begun=() names=() failed=()
  shift
  slots=${jobs:-$((ngpu > 0 ? 1 : cores))}
  [ "$ngpu" -eq 0 ] || [ "$slots" -le "$ngpu" ] || slots=$ngpu
  [ "$slots" -le $# ] || slots=$#
  if [ "$slots" -le 1 ] || [ "$dry_run" = true ]; then
    for experiment in "$@"; do
      ended=0
      "$function" "$experiment" || ended=$?
      [ $ended -ne 130 ] || return 130
      [ $ended -eq 0 ] || failed+=("$experiment")
    done
    say_failed "${failed[@]}"
    return
  fi
  running=() # process groups, by slot
  trap 'stop_running; exit 130' INT TERM
  for experiment in "$@"; do
    until slot=$(free_slot "$slots"); do wait -n || true; done
    set -m # a process group of its own, which can be ended as a whole
    # No terminal, so that there are lines, which say whose they are, and not bars.
    with_share "$slot" "$slots" "$function" "$experiment" </dev/null 2> >(cat >&2) &
    running[slot]=$!
    begun+=($!) # one that has ended already gives its slot, and its place in `running`, to another
    names+=("$experiment")
    set +m
  done
  for ended in "${!begun[@]}"; do wait "${begun[ended]}" || failed+=("${names[ended]}"); done
  trap - INT TERM
  say_failed "${failed[@]}"
}

say_failed() { # say_failed EXPERIMENT...: which failed, if any; the others have come to their end
  [ $# -gt 0 ] || return 0
  echo "$0: failed: $*; the reason stands above. What else was to run has run; the same command goes on" >&2
  return 1
}

free_slot() { # free_slot SLOTS: a number below it at which nothing runs
  local slot
  for ((slot = 0; slot < $1; slot++)); do
    if [ -z "${running[slot]:-}" ] || ! kill -0 "${running[slot]}" 2>/dev/null; then
      echo "$slot"
      return
    fi
  done
  return 1
}

stop_running() {
  local group
  for group in "${running[@]}"; do kill -INT -- "-$group" 2>/dev/null || true; done
  wait
}

with_share() { # with_share SLOT SLOTS COMMAND...: with that part of the cores or GPUs
  local slot=$1 slots=$2 gpus
  shift 2
  if [ "$ngpu" -gt 0 ]; then
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((ngpu - 1)))}"
    ngpu=$((ngpu / slots))
    gpus=("${gpus[@]:slot * ngpu:ngpu}")
    export CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]}")
  elif [ -z "$threads_given" ]; then
    export OMP_NUM_THREADS=$((cores > slots ? cores / slots : 1))
  fi
  "$@"
}
