#!/usr/bin/env bash
# Trains on a TPU slice in GKE, as a JobSet that restarts when it is preempted.
#
# usage: launch/gke/apply.sh --name=NAME --image=IMAGE --claim=PVC [flags] \
#          -- --config=FILE --workdir=/mnt/ogls/FOLDER ...
#
#   --image=IMAGE          with this checkout at /ogls and its needs installed
#   --claim=PVC            a volume that all hosts write (Filestore, GCS FUSE),
#                          mounted at /mnt/ogls
#   --accelerator=KIND     default tpu-v5-lite-podslice; tpu-v4-podslice,
#                          tpu-v5p-slice, tpu-v6e-slice, tpu7x
#   --topology=AxB[xC]     default 4x4
#   --hosts=N              default 4: chips of the slice / chips of a host
#   --chips_per_host=N     default 4
#   --max_restarts=N       default 100; preemptions count, bad input ends at once
#   --dry_run              print the manifest and apply nothing
#
# The cluster needs the JobSet controller and a node pool of that topology.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/../common.sh"

name='' image='' claim='' accelerator=tpu-v5-lite-podslice topology=4x4 hosts=4
chips_per_host=4 max_restarts=100 dry_run=''
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --name=* | --image=* | --claim=* | --accelerator=* | --topology=* | \
      --hosts=* | --chips_per_host=* | --max_restarts=*)
      key=${1%%=*}
      printf -v "${key#--}" '%s' "${1#*=}"
      ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) die "unknown argument '$1'; see launch/gke/apply.sh --help" ;;
  esac
  shift
done
for key in name image claim; do
  [[ ${!key} ]] || die "--$key= is missing; see launch/gke/apply.sh --help"
done
need_numbers hosts chips_per_host max_restarts
[[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology='$topology' is not AxB or AxBxC, such as 4x4 or 2x2x4"
(($#)) || die 'nothing follows --: give --config=FILE --workdir=/mnt/ogls/FOLDER'

chips=$((${topology//x/*}))
((chips == hosts * chips_per_host)) || die "--topology=$topology has $chips chips, which is not --hosts=$hosts times --chips_per_host=$chips_per_host"

# A JSON list is YAML, too, whatever is in the arguments; so is a JSON string.
manifest=$(
  python3 - "$here/jobset.yaml" "$name" "$image" "$claim" "$accelerator" \
    "$topology" "$hosts" "$chips_per_host" "$max_restarts" "$@" <<'PY'
import json, string, sys

path, *values = sys.argv[1:]
keys = 'name image claim accelerator topology'.split()
counts = 'hosts chips_per_host max_restarts'.split()
filled = {key: json.dumps(values.pop(0)) for key in keys}
filled |= {key: values.pop(0) for key in counts}
# Comments are not the manifest's: they may hold any word.
lines = [line for line in open(path) if not line.lstrip().startswith('#')]
# Kubernetes would fill in $(NAME) in arguments; $$ is a dollar.
arguments = json.dumps([value.replace('$', '$$') for value in values])
print(string.Template(''.join(lines)).substitute(filled, args=arguments), end='')
PY
)
if [[ $dry_run ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
