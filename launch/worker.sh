#!/usr/bin/env bash
# Starts training on a worker of a slice; it goes on when the caller goes away.
#
# usage: launch/worker.sh FOLDER ATTEMPT -- TRAINING ARGUMENTS
#
# FOLDER gets run.log and, at the end, exit_code. FOLDER/lock is held as long as
# training runs, and names its ATTEMPT: a start that is repeated because it failed on
# another worker does nothing here.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$1 attempt=$2
shift 3
cd "$here/.."
# shellcheck disable=SC1091
. .venv/bin/activate
# Where the bucket is mounted, if there is one.
if [[ -z ${OGLS_DATA_DIR:-} && -d /mnt/ogls/data ]]; then
  export OGLS_DATA_DIR=/mnt/ogls/data
fi
mkdir -p "$folder"
exec 9>>"$folder/lock"
if ! flock -n 9; then
  [[ $(<"$folder/lock") != "$attempt" ]] || exit 0
  # When another host dies, JAX takes up to a minute to end training on this one.
  flock -w 120 9 || {
    echo "error: $HOSTNAME is training already; launch/tpu_vm.sh resume waits for its end" >&2
    exit 1
  }
fi
echo "$attempt" >"$folder/lock"
rm -f "$folder/exit_code"
{
  trap '' HUP # with the caller's connection
  trap : TERM # training ends by itself, and its code is wanted
  code=0
  python -m ogls_jax.train --coordinator=auto "$@" >>"$folder/run.log" 2>&1 || code=$?
  echo "$code" >"$folder/exit_code.partial"
  mv "$folder/exit_code.partial" "$folder/exit_code"
} </dev/null >/dev/null 2>&1 &
