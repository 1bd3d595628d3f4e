#!/usr/bin/env bash
# The test command: installs what is missing, checks style and types, runs the tests. Arguments go to pytest:
#   tests/run.sh -m slow     the slow ones     tests/run.sh tests/adapters/test_bank.py -k identity
#   tests/run.sh -n 0        in one process, rather than one for each core
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/install.sh corpora,test
. local/path.sh
ruff check .
ruff format --check .
basedpyright
pytest "$@"
