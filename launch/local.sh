#!/usr/bin/env bash
# Trains with N processes on this machine, as N hosts of a pod would.
#
# usage: launch/local.sh N [--dry_run] -- --config=FILE --workdir=FOLDER ...
#
# What follows -- goes to `python -m ogls_jax.train` as it is. Each process sees
# all devices of the machine, so this is for CPUs: JAX_PLATFORMS=cpu unless it is
# set, one device a process (XLA_FLAGS=--xla_force_host_platform_device_count=4
# for four). When one process ends badly the others are ended, too; SIGTERM goes
# to all, and so does SIGINT, as SIGTERM. The exit code is the first that is not 0.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

dry_run='' num=''
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *[!0-9]* | '') die "unknown argument '$1'; see launch/local.sh --help" ;;
    *) num=$1 ;;
  esac
  shift
done
[[ $num && $num -gt 0 ]] || die 'N, how many processes, is missing: launch/local.sh 2 -- --config=...'
(($#)) || die 'nothing follows --: give --config=FILE --workdir=FOLDER'

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
python=${PYTHON:-python}
port=$((20000 + (RANDOM + $$) % 20000))
common=("$python" -m ogls_jax.train "--coordinator=127.0.0.1:$port"
  "--num_processes=$num")
if [[ $dry_run ]]; then
  for ((n = 0; n < num; n++)); do
    quoted "${common[@]}" "--process_id=$n" "$@"
  done
  exit
fi

pids=()
signal() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }
# Background jobs of a script ignore SIGINT.
trap 'signal TERM' TERM INT
for ((n = 0; n < num; n++)); do
  "${common[@]}" "--process_id=$n" "$@" > >(sed -u "s/^/[$n] /") \
    2> >(sed -u "s/^/[$n] /" >&2) &
  pids+=($!)
done

code=0
while ((${#pids[@]})); do
  # A trapped signal ends this as well, with everybody still there.
  wait -n "${pids[@]}" || true
  alive=() status=0
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
    elif ((!status)); then
      # Of each, as several may have ended together.
      wait "$pid" || status=$?
    fi
  done
  pids=("${alive[@]}")
  if ((status && !code)); then
    code=$status
    # After a notice all of them end by themselves, once they have saved.
    ((code == PREEMPTED)) || signal TERM
  fi
done
exit "$code"
