#!/usr/bin/env bash
# Make .venv in the repository and install into it what is missing. Usage: tools/install.sh [extra,extra]
# Extras (setup.py): corpora (the built-in corpora's texts and espeak-ng), translit (starting values of new scripts),
# hf (pretrained encoders), lm (n-gram language models), test. Run twice it does nothing.
# PYTHON=python3.12 tools/install.sh chooses the interpreter; TORCH=cuda or TORCH=cpu the build of torch, by default the
# one that fits the machine.
set -euo pipefail

root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
pins=$root/tools/pins.txt
python=${PYTHON:-python3}

say() { echo "install: $*" >&2; }
die() { say "$*"; exit 1; }
pin() { grep "^$1==" "$pins"; }
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$pins" "$@"; }

# What is installed is written down, extra by extra, with the files that decide it.
state=$venv/.installed
inputs=$(cat "$pins" "$root/setup.py" | cksum)
is_installed() { [ -f "$state" ] && grep -qxF "$1 $inputs" "$state"; }

install_torch() {
  if [ "${TORCH:-}" = cuda ] || { [ "${TORCH:-}" != cpu ] && nvidia-smi -L >/dev/null 2>&1; }; then
    say "$(pin torch) with CUDA"
    pip "$(pin torch)"
    return
  fi
  say "no GPU: $(pin torch) for the CPU"
  pip "$(pin torch)+cpu" 2>/dev/null ||
    pip "$(pin torch)" --index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
    pip "$(pin torch)"
}

extras=base${1:+,$1}
wanted=()
for extra in ${extras//,/ }; do is_installed "$extra" || wanted+=("$extra"); done
[ ${#wanted[@]} -gt 0 ] || exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  die "$python is not Python 3.11 or newer; name one with PYTHON=... $0"
if [ ! -x "$venv/bin/python" ]; then
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || { rm -rf "$venv"; die "no virtual environment could be made (on Debian: apt install python3-venv)"; }
fi
for extra in "${wanted[@]}"; do
  if [ "$extra" = base ]; then
    "$venv/bin/python" -c 'import torch' 2>/dev/null || install_torch
    say "pelasr and its libraries"
    pip --editable "$root"
    # Without its requirements: they would replace torch and setuptools, and most of them are never imported here.
    say "$(pin espnet), its modules alone"
    pip --no-deps "$(pin espnet)"
  else
    say "the extra '$extra'"
    pip --editable "$root[$extra]"
  fi
  echo "$extra $inputs" >> "$state"
done
say "done"
