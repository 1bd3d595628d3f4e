# Sourced by the pipeline: the environment of all stages.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
export PYTHONPATH="$root/local${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUTF8=1 LC_ALL=C.UTF-8
# More threads than cores cost several times the speed.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
# A thread that has nothing to do gives its core away instead of spinning: with another busy process beside a training
# on all cores, spinning costs up to ten times the speed, and on an idle machine it gains next to nothing.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-3000}"
