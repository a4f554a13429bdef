#!/usr/bin/env bash
# Trains on a Cloud TPU slice, from nothing to done, through preemptions.
#
# usage: launch/tpu_vm.sh COMMAND NAME --zone=ZONE [flags] [-- TRAINING ARGUMENTS]
#
#   up      create, set up, train until done (again after each preemption), delete
#   create  ask for the slice, as a queued resource, and wait until it is there
#   setup   copy the last commit to all workers and install what it needs
#   run     start training on all workers; it goes on without this script
#   resume  train until done: create, set up and start again whenever needed; where
#           it is training already, wait for its end first
#   logs    follow the first worker's log
#   status  what runs in the zone, and what of it bills (NAME is not needed)
#   delete  end the slice and its billing
#
# flags:
#   --zone=ZONE           e.g. us-west4-a
#   --project=PROJECT     default: gcloud's own
#   --type=TYPE           accelerator type, default v5litepod-16; v6e-16, v5p-16,
#                         v4-16 (v4 and v5p count cores: two a chip)
#   --runtime=VERSION     TPU software version; default: that of the type
#   --spot                much cheaper, and may be taken away at any moment
#   --valid_for=DURATION  give up waiting for the slice after this, default 6h
#   --bucket=NAME         mounted at /mnt/ogls on all workers (gcsfuse). On several
#                         hosts --workdir must be a folder that all share, such as
#                         /mnt/ogls/runs/1p7b
#   --keep                `up` leaves the slice running at its end
#   --delete_on_exit      delete the slice however the script ends
#   --max_failures=N      in a row, of setup and training, other than preemptions;
#                         as many refusals of the slice; default 3
#   --progress_seconds=N  training that lasted so long starts the count again;
#                         default 1800
#   --poll_seconds=N      default 30
#   --dry_run             print the commands and do nothing
#
# What follows -- goes to `python -m ogls_jax.train` on every worker as it is.
# Sources, read in November 2026: docs.cloud.google.com/tpu/docs/queued-resources,
# /spot, /runtimes, /managing-tpus-tpu-vm. TPU7x is to be had in GKE only
# (launch/gke).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"

readonly REMOTE=ogls FOLDER=ogls_run # on the workers, under the home folder
command='' name='' zone='' project='' type=v5litepod-16 runtime='' spot=''
valid_for=6h bucket='' keep='' delete_on_exit='' max_failures=3 poll_seconds=30
progress_seconds=1800 dry_run='' attempt='' starts=0
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --zone=* | --project=* | --type=* | --runtime=* | --valid_for=* | \
      --bucket=* | --max_failures=* | --progress_seconds=* | --poll_seconds=*)
      key=${1%%=*}
      printf -v "${key#--}" '%s' "${1#*=}"
      ;;
    --spot | --keep | --delete_on_exit | --dry_run) printf -v "${1#--}" 1 ;;
    --) shift && break ;;
    -*) die "unknown flag '$1'; see launch/tpu_vm.sh --help" ;;
    *)
      if [[ ! $command ]]; then
        command=$1
      elif [[ ! $name ]]; then
        name=$1
      else
        die "unexpected argument '$1'; training arguments follow --"
      fi
      ;;
  esac
  shift
done
training=("$@")

case $command in
  up | create | setup | run | resume | logs | delete)
    [[ $name ]] || die "$command needs the slice's NAME"
    [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "NAME '$name' must be lower-case letters, digits and dashes"
    ;;
  status) ;;
  '') die 'COMMAND is missing; see launch/tpu_vm.sh --help' ;;
  *) die "unknown command '$command'; see launch/tpu_vm.sh --help" ;;
esac
[[ $zone ]] || die '--zone= is missing, e.g. --zone=us-west4-a'
need_numbers max_failures progress_seconds poll_seconds
case $command in up | run | resume)
  ((${#training[@]})) || die 'nothing follows --: give --config=FILE --workdir=FOLDER'
  ;;
esac
# Before anything bills.
case $command in up | setup | resume)
  if [[ ! $dry_run ]]; then
    left_out=$(git -C "$here/.." status --porcelain 2>&1) || die "setup copies the last commit of $(cd "$here/.." && pwd), and git says '${left_out//$'\n'/ }'; use a clone of the repository"
    [[ ! $left_out ]] || die "setup copies the last commit, without '${left_out//$'\n'/, }'; git commit or git stash -u first"
  fi
  ;;
esac
if [[ ! $runtime ]]; then
  case $type in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "--type='$type' has no known software version; give --runtime=" ;;
  esac
fi
where=("--zone=$zone")
[[ $project ]] && where+=("--project=$project")
tpus=(gcloud compute tpus)
queued=("${tpus[@]}" queued-resources)

# State of the queued resource; NONE where there is none, UNKNOWN on an error.
state() {
  local text
  if text=$("${queued[@]}" describe "$name" "${where[@]}" \
    '--format=value(state.state)' 2>&1); then
    echo "${text:-UNKNOWN}"
  elif [[ $text == *NOT_FOUND* || $text == *'not found'* ]]; then
    echo NONE
  else
    say "gcloud: $text"
    echo UNKNOWN
  fi
}

is_up='' # whether a slice may be there that bills
warn_if_up() {
  local code=$?
  [[ $is_up && ! $dry_run ]] || exit "$code"
  if [[ $delete_on_exit ]]; then
    delete || true
    [[ $is_up ]] || exit "$code"
  fi
  {
    echo
    echo "*** the slice $name in $zone may still run, and bills. To end it:"
    echo "***   $(quoted launch/tpu_vm.sh delete "$name" "${where[@]}")"
  } >&2
  exit "$code"
}
trap warn_if_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

create() {
  local tier=()
  [[ $spot ]] && tier=(--spot)
  is_up=1
  run "${queued[@]}" create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" \
    "--valid-until-duration=$valid_for" ${tier[@]+"${tier[@]}"} || return
  [[ $dry_run ]] || wait_until_active
}

# 0 once it is there; 1 where it was taken away or refused meanwhile.
wait_until_active() {
  local now last=''
  while :; do
    now=$(state)
    [[ $now == "$last" ]] || say "$name: $now"
    last=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING | NONE) return 1 ;;
    esac
    sleep "$poll_seconds"
  done
}

on_workers() { # WORKER COMMAND
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

# Called in conditions, where errexit is off.
setup() {
  local archive install
  archive=$(mktemp -d)/ogls.tar.gz || return
  run git -C "$here/.." archive --format=tar.gz "--output=$archive" HEAD || return
  run "${tpus[@]}" tpu-vm scp "$archive" "$name:ogls.tar.gz" "${where[@]}" \
    --worker=all || return
  # Nothing is replaced under a process that runs: worker.sh's lock. The images have
  # Python 3.10.
  install="set -e; mkdir -p $REMOTE $FOLDER; exec 9>>$FOLDER/lock
flock -w 120 9 || { echo \"error: \$HOSTNAME is training; launch/tpu_vm.sh resume waits for its end\" >&2; exit 1; }
tar -xzf ogls.tar.gz -C $REMOTE; cd $REMOTE
sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv
python3.11 -m venv .venv
.venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
  if [[ $bucket ]]; then
    install+="
sudo mkdir -p /mnt/ogls && sudo chown \"\$USER\" /mnt/ogls
mountpoint -q /mnt/ogls || gcsfuse --implicit-dirs $(quoted "$bucket") /mnt/ogls 9>&-"
  fi
  on_workers all "$install"
}

# A start that failed on some workers is repeated as the same attempt, which leaves
# the others alone.
start() {
  [[ $attempt ]] || attempt=$(date +%s)-$$-$((++starts))
  on_workers all "bash $REMOTE/launch/worker.sh \$HOME/$FOLDER $attempt -- $(quoted "${training[@]}")" || return
  attempt=''
}

# Leaves training's exit code in `code`, or `running`, or `lost`: there is none, and
# nobody holds worker.sh's lock (a reboot, no memory, never started).
ask() {
  code=$(on_workers 0 "cat $FOLDER/exit_code 2>/dev/null && exit
mkdir -p $FOLDER; flock -ns $FOLDER/lock true || { echo running; exit; }
cat $FOLDER/exit_code 2>/dev/null || echo lost") || return
  code=${code##*$'\n'}
}

# Until `code` is one that ends, or `gone`, with the slice. Not printed: a signal
# would wait for the end of a command substitution.
wait_for_training() {
  while :; do
    if ask; then
      [[ $code == running ]] || return 0
    else
      case $(state) in
        # UNKNOWN may be this machine's own network: training goes on.
        ACTIVE | UNKNOWN) say "$name: no answer; trying again" ;;
        *) code=gone && return ;;
      esac
    fi
    sleep "$poll_seconds"
  done
}

# 0 when training runs, which it may do already: a script before this one started it.
begin() {
  if [[ ! $is_set_up ]]; then
    if ask && [[ $code == running ]]; then
      say "$name: already training; waiting for its end"
      return
    fi
    setup || return
    is_set_up=1
  fi
  start || return
  say "$name: training"
}

# Counts a failure, and is 1 after too many in a row. It is none where the slice was
# taken away meanwhile, or cannot be asked.
may_retry() { # WHAT
  local now
  now=$(state)
  if [[ $now != ACTIVE ]]; then
    say "$name: $1, while $now"
  elif ((++failures <= max_failures)); then
    say "$name: $1; again, $failures of $max_failures"
  else
    say "$name: $1, $failures times: giving up"
    return 1
  fi
}

delete() {
  if run "${queued[@]}" delete "$name" "${where[@]}" --force --quiet; then
    is_up=''
    return 0
  fi
  return 1
}

resume() {
  local failures=0 refusals=0 is_set_up='' code='' began what
  if [[ $dry_run ]]; then
    create && setup && start
    return
  fi
  while :; do
    case $(state) in
      ACTIVE) is_up=1 ;;
      NONE)
        is_set_up=''
        if ! create; then
          ((++refusals <= max_failures)) || die "$name cannot be had, after $refusals tries"
          sleep "$poll_seconds"
          continue
        fi
        refusals=0
        ;;
      FAILED | SUSPENDED)
        say "$name was taken away, or never there; asking again"
        is_up=1 is_set_up=''
        delete || die "$name cannot be deleted; see launch/tpu_vm.sh status"
        sleep "$poll_seconds"
        continue
        ;;
      *) # on its way here or out, or no answer
        is_up=1
        wait_until_active || sleep "$poll_seconds"
        continue
        ;;
    esac
    if ! begin; then
      may_retry 'setup or start failed' || return 1
      sleep "$poll_seconds"
      continue
    fi
    began=$SECONDS
    wait_for_training
    ((SECONDS - began < progress_seconds)) || failures=0
    case $code in
      "$DONE") say "$name: done" && return ;;
      "$BAD_INPUT")
        on_workers 0 "tail -n 5 $FOLDER/run.log" >&2 || true
        say "$name: exit code 2, bad input: the same again would fail the same way"
        return "$BAD_INPUT"
        ;;
      "$PREEMPTED" | gone) say "$name: preempted" ;;
      *)
        on_workers 0 "tail -n 20 $FOLDER/run.log" >&2 || true
        what="exit code $code"
        # The worker may have rebooted: mount the bucket again.
        [[ $code != lost ]] || what='no exit code and no process any more' is_set_up=''
        may_retry "$what" || return 1
        ;;
    esac
    sleep "$poll_seconds"
  done
}

status() {
  local rows
  run "${queued[@]}" list "${where[@]}" '--format=table(name,state.state)'
  run "${tpus[@]}" tpu-vm list "${where[@]}" \
    '--format=table(name,state,acceleratorType)'
  [[ $dry_run ]] && return
  rows=$("${tpus[@]}" tpu-vm list "${where[@]}" '--format=value(name)')
  if [[ $rows ]]; then
    echo "bills: ${rows//$'\n'/, }"
  else
    echo 'nothing bills'
  fi
}

case $command in
  up)
    resume
    [[ $keep ]] || delete || die "$name cannot be deleted; see launch/tpu_vm.sh status"
    ;;
  run) is_up=1 && start ;;
  setup) is_up=1 && setup ;;
  logs) on_workers 0 "tail -n +1 -F $FOLDER/run.log" ;;
  *) "$command" ;;
esac
