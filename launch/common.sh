# shellcheck shell=bash
# What the launch scripts share; sourced, not run.

# The training command's exit codes (README.md).
# shellcheck disable=SC2034 # others use them
readonly DONE=0 BAD_INPUT=2 PREEMPTED=75

die() {
  echo "error: $*" >&2
  exit "$BAD_INPUT"
}

# Dies where one of the flags of these names is no whole number.
need_numbers() {
  local key
  for key; do
    # 08 would be octal in (( )).
    [[ ${!key} =~ ^(0|[1-9][0-9]*)$ ]] || die "--$key='${!key}' is not a whole number"
  done
}

say() { echo "$(date '+%H:%M:%S') $*" >&2; }

# The header of a script, from its second line to the first that is no comment.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# One shell word for each argument, as bash would read it back.
quoted() {
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

# Runs a command, or with --dry_run prints it.
run() {
  if [[ ${dry_run:-} ]]; then
    quoted "$@"
  else
    "$@"
  fi
}
