"""The Colab notebook, from its first cell to its last."""

import os
import pathlib

import nbclient
import nbformat

NOTEBOOK = pathlib.Path('launch/colab_tpu.ipynb')
SMALL = {
  'model.width': 32, 'model.num_layers': 2, 'model.mlp_size': 48,
  'data.num_questions': 64, 'data.arithmetic.num_terms': 2,
  'data.arithmetic.max_number': 9, 'warmup.batch_questions': 8,
  'rollouts.batch_questions': 8, 'rollouts.group_size': 2,
  'rollouts.max_tokens': 16, 'eval.num_questions': 8, 'eval.samples': 1,
  'eval.batch_questions': 8, 'checkpoint.every_steps': 1,
}  # fmt: skip


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
  overrides = [f'--config.{key}={value}' for key, value in SMALL.items()]
  monkeypatch.setenv('OGLS_OVERRIDES', ' '.join(overrides))
  monkeypatch.setenv('OGLS_WORKDIR', str(tmp_path))
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('PYTHONPATH', os.getcwd())
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert not any(cell.get('outputs') for cell in notebook.cells)
  sizes = 'NUM_STEPS, WARMUP_STEPS = 12, 400'
  (parameters,) = [c for c in notebook.cells if sizes in c.source]
  parameters.source = parameters.source.replace(sizes, sizes[:-7] + '2, 4')
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': '.'}}
  )
  client.execute()
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  printed = [
    ''.join(output.get('text', '') for output in cell.outputs) for cell in code
  ]
  assert 'CpuDevice' in printed[2]
  assert 'ogls_sd 2/2' in printed[3] and 'opsd 2/2' in printed[3]
  # Stage 1 is trained once.
  assert printed[3].count('warmup 4/4') == 1
  assert any('image/png' in out.get('data', {}) for out in code[4].outputs)
  assert (tmp_path / 'curves.png').stat().st_size > 10_000
  rows = printed[5].splitlines()[1:]
  assert [row.split()[0] for row in rows] == ['ogls_sd', 'opsd']
  assert all('gain' in row and '%' in row for row in rows)
