# Sourced by the pipeline: the environment of all stages.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
export PYTHONPATH="$root/local${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUTF8=1 LC_ALL=C.UTF-8
# More threads than cores cost several times the speed.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
