"""A file imports only from files above it (DESIGN: data flows one way)."""

import ast
import pathlib

PACKAGE = pathlib.Path('ogls_jax')
ORDER = """
  errors cache_dir json_file numerics batches mesh hosts notice
  gguf_file gguf_tokenizer sentencepiece_file chat_template tokenizer
  token_texts
  tasks.question tasks.latex tasks.values tasks.units
  tasks.expressions tasks.forms tasks.math
  tasks.superglue_rows tasks.superglue tasks.superglue_metrics
  tasks.arithmetic tasks.symbolic tasks.worker tasks.sandbox tasks.grading
  answers
  tfds_rows data
  models.locate models.settings models.attention models.quantize models.lora
  models.cache models.layer models.splash models.transformer
  models.config_checks models.families models.hf_config models.gguf_config
  models.shards models.tensor_files models.weights models.known_sizes
  prompts token_choice sampling rollout hints teacher steering
  loss loss_blocks loss_masks optimizer metrics checksums checkpoint workdir
  inputs
  intervals scores
  step inspect_step
  validate questions validate_inputs label_likelihood build repetition
  evaluation rounds warmup runs
  programs inspection health wandb_log reporting saver profile loop cli train
  export report_data report
  results generations evaluate paired
  spending variants comparison_plan comparison comparison_plots compare
  hlo hlo_flops hlo_bytes hlo_loops collectives program_cost chips
  step_parts shapes compiled_sampling compiled suggest preflight
""".split()  # noqa: SIM905 - the lines group what belongs together


def imports_of(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      names.append(node.module)
    else:
      continue
    for name in names:
      if name.startswith('ogls_jax.'):
        yield name.removeprefix('ogls_jax.')


def test_every_file_is_in_the_order():
  files = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)
    for path in PACKAGE.rglob('*.py')
    if path.name != '__init__.py'
  }
  assert files == set(ORDER)


def test_imports_go_one_way():
  checked = 0
  for position, name in enumerate(ORDER):
    path = PACKAGE / (name.replace('.', '/') + '.py')
    for imported in imports_of(path):
      if imported in ORDER:
        checked += 1
        assert ORDER.index(imported) < position, f'{name} imports {imported}'
  assert checked > 30
