#!/usr/bin/env bash
# Runs on each worker of a slice: trains, keeps a log, and leaves the exit code.
#
# usage: launch/worker.sh FOLDER -- TRAINING ARGUMENTS
#
# FOLDER gets run.log and, at the end, exit_code. The caller may go away.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1
shift 2
mkdir -p "$folder"
rm -f "$folder/exit_code"
cd "$here/.." || exit 2
# shellcheck disable=SC1091
. .venv/bin/activate
python -m ogls_jax.train --coordinator=auto "$@" >>"$folder/run.log" 2>&1
code=$?
echo "$code" >"$folder/exit_code.partial"
mv "$folder/exit_code.partial" "$folder/exit_code"
