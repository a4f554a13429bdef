import pytest

from configs import default
from ogls_jax import suggest
from ogls_jax.errors import UserError


def small_enough(limits):
  """`try_out` for programs that fit below a product of their keys."""
  tried = []

  def try_out(config, overrides):
    tried.append(overrides)
    sizes = {
      'decode': config.rollouts.max_tokens * config.rollouts.batch_questions,
      'distill': config.rollouts.batch_questions
      // config.optimizer.num_microbatches,
    }
    if config.rollouts.batch_questions % 16:
      raise UserError('too few')
    return next((n for n, size in sizes.items() if size > limits[n]), '')

  return try_out, tried


def test_each_program_gets_the_mildest_change_that_is_enough():
  config = default.get_config()  # 32 questions, 8,192 tokens
  try_out, tried = small_enough({'decode': 32 * 2048, 'distill': 8})
  found = suggest.find(config, 'decode', try_out)
  assert found == {'rollouts.max_tokens': 2048, 'optimizer.num_microbatches': 4}
  assert suggest.as_flags(found) == (
    '--config.rollouts.max_tokens=2048 --config.optimizer.num_microbatches=4'
  )
  # Sharding more came first, and did not help.
  assert tried[0] == {'mesh.data': 1, 'mesh.fsdp': -1, 'mesh.model': 1}
  assert tried[1] == {'rollouts.max_tokens': 4096}
  assert config.rollouts.max_tokens == 8192


def test_a_change_is_none_that_an_earlier_program_has_no_room_for():
  def try_out(config, overrides):
    if config.mesh.fsdp == -1:
      return 'place'
    return 'compact' if config.rollouts.max_tokens > 4096 else ''

  found = suggest.find(default.get_config(), 'compact', try_out)
  assert found == {'rollouts.max_tokens': 4096}


def test_none_where_nothing_helps():
  try_out, tried = small_enough({'decode': 1, 'distill': 1})
  assert suggest.find(default.get_config(), 'decode', try_out) is None
  # Of fewer questions 16 alone divide by the devices.
  sizes = [
    t['rollouts.batch_questions']
    for t in tried
    if len(t) == 1 and 'rollouts.batch_questions' in t
  ]
  assert sizes == [16, 8, 4, 2]


def test_an_evaluation_has_fewer_questions_at_a_time():
  def try_out(config, overrides):
    return 'eval decode' if config.eval.batch_questions > 8 else ''

  config = default.get_config()
  found = suggest.find(config, 'eval decode', try_out)
  assert found == {'eval.batch_questions': 8}
  keys = {
    key
    for change in suggest.changes(config, program='eval decode')
    for key in change
  }
  assert 'rollouts.batch_questions' not in keys and 'eval.max_tokens' in keys


@pytest.mark.parametrize(
  'program', ['begin', 'decode', 'compact', 'distill', 'eval decode']
)
def test_changes_are_of_keys_that_there_are(program):
  config = default.get_config()
  config.model.remat = 'dots'
  found = list(suggest.changes(config, program=program))
  for change in found:
    suggest.with_overrides(config, change)
  assert ({'model.remat': 'full'} in found) == (program == 'distill')
